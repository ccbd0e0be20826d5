-- Listing 7.
SELECT
    product_category,
    COUNT(*) AS views,
    COUNT(DISTINCT session_id) AS sessions,
    SUM(CASE WHEN event_type = 'purchase' THEN 1 ELSE 0 END) AS purchases
FROM events
WHERE store_id = 'store_123'
    AND event_date = '2015-06-15'
    AND device_type = 'mobile'
GROUP BY product_category
ORDER BY views DESC
LIMIT 20;
