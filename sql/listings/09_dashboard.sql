-- Listing 9, its second comment line ("# by minute") repaired.
-- Orders and revenue, last hour, by minute
SELECT
    window_start,
    SUM(order_count) AS orders,
    SUM(total_revenue) AS revenue
FROM mv_revenue_by_minute
WHERE store_id = 'store_123'
    AND window_start >= NOW() - INTERVAL '1' HOUR
GROUP BY window_start
ORDER BY window_start;
