import sys, datetime
import segment.analytics as analytics
analytics.write_key = sys.argv[2]; analytics.host = sys.argv[1]; analytics.gzip = len(sys.argv) > 3; analytics.debug=False
errors=[]
analytics.on_error = lambda error, items: errors.append(str(error))
now=datetime.datetime.now(datetime.timezone.utc)
ctx={'ip':'198.51.100.77','userAgent':'Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) Mobile/15E148','page':{'path':'/shoes','referrer':'https://www.google.com/'}}
analytics.identify('u-1', {'email':'a@example.com','plan':'gold'}, context=ctx)
analytics.page('u-1', 'Shop', 'Shoes', {'path':'/shoes','url':'https://shop.example/shoes?utm_source=news'}, context=ctx)
analytics.track('u-1','Product Viewed', {'product_id':'p1','category':'shoes','price':19.9}, context=ctx)
analytics.track('u-1','Product Added', {'product_id':'p1','category':'shoes','price':19.9,'quantity':2}, context=ctx)
analytics.track('u-1','Checkout Started', {'order_id':'o-1','value':64.7}, context=ctx)
analytics.track('u-1','Order Completed', {'order_id':'o-1','revenue':64.7,'currency':'EUR','products':[{'product_id':'p1','category':'shoes','price':19.9,'quantity':2},{'sku':'s2','name':'Socks','category':'socks','price':24.9,'quantity':1}]}, context=ctx)
analytics.track('u-1','Newsletter Signed Up', {'list':'weekly'}, context=ctx)
analytics.group('u-1','g-1',{'name':'Team'}, context=ctx)
analytics.alias('anon-1','u-1')
analytics.flush(); analytics.shutdown()
print(errors)
sys.exit(1 if errors else 0)
