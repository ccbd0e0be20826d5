//! What to ask of the demo's shops.

/// Title and query.
pub const QUERIES: [(&str, &str); 5] = [
    (
        "orders and revenue of the last hour by minute (answered from a view)",
        "SELECT window_start, SUM(order_count) AS orders, SUM(total_revenue) AS revenue
FROM mv_revenue_by_minute
WHERE store_id = 'store_123' AND window_start >= NOW() - INTERVAL '1' HOUR
GROUP BY window_start ORDER BY window_start;",
    ),
    (
        "which channels bring revenue now",
        "SELECT utm_source, SUM(order_count) AS orders, SUM(total_revenue) AS revenue
FROM revenue_by_source
WHERE window >= NOW() - INTERVAL '15 minutes'
GROUP BY utm_source ORDER BY revenue DESC NULLS LAST;",
    ),
    (
        "one store lost half of its orders for a while: which, and when?",
        "SELECT date_bin(INTERVAL '10 minutes', window_start, TIMESTAMPTZ '2000-01-01') AS at, store_id, SUM(order_count) AS orders
FROM mv_revenue_by_minute
WHERE store_id IN ('store_123', 'store_105', 'store_108')
GROUP BY at, store_id ORDER BY store_id, at;",
    ),
    (
        "payments failed three times as often for some minutes",
        "SELECT date_trunc('minute', event_time) AS minute, COUNT(*) FILTER (WHERE event_type = 'payment_failed') AS failed,
       COUNT(*) FILTER (WHERE event_type = 'purchase') AS paid
FROM events WHERE event_time >= NOW() - INTERVAL '1' HOUR
GROUP BY minute ORDER BY minute;",
    ),
    (
        "how far sessions get, by device",
        "SELECT * FROM FUNNEL(
    events,
    steps := [event_type = 'page_view', event_type = 'product_view', event_type = 'add_to_cart',
              event_type = 'checkout_start', event_type = 'purchase'],
    window := INTERVAL '30' MINUTE,
    group_by := [device_type])
ORDER BY device_type, step;",
    ),
];
