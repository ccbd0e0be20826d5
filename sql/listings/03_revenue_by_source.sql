-- Listing 3 without the stray comma before GROUP BY. The commerce schema has this view; the listing's own name would clash.
CREATE MATERIALIZED VIEW listing_3 AS
SELECT
    store_id,
    TUMBLE(event_time, INTERVAL '1' MINUTE) AS window,
    utm_source,
    COUNT(*) AS order_count,
    SUM(revenue) AS total_revenue,
    COUNT(DISTINCT user_id) AS unique_customers
FROM events
WHERE event_type = 'purchase'
GROUP BY store_id, window, utm_source;
