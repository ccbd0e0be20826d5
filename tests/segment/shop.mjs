import { Analytics } from '@segment/analytics-node'
const analytics = new Analytics({ writeKey: process.argv[3], host: process.argv[2], maxRetries: 0 })
let errors = []
analytics.on('error', (error) => errors.push(String(error.reason ?? error.code)))
const context = { ip: '198.51.100.77', userAgent: 'Mozilla/5.0 (Windows NT 10.0; Win64; x64)', page: { path: '/socks' }, campaign: { source: 'news', medium: 'email', name: 'may' } }
analytics.page({ anonymousId: 'anon-2', name: 'Socks', properties: { path: '/socks' }, context })
analytics.track({ userId: 'u-2', event: 'Order Completed', context, properties: { order_id: 'o-2', total: 10, products: [{ product_id: 'p9', quantity: 1, price: 10 }] } })
analytics.screen({ userId: 'u-2', name: 'Cart', context })
await analytics.closeAndFlush()
console.log(errors)
process.exit(errors.length ? 1 : 0)
