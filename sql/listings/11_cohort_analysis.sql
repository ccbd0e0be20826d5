-- Listing 11, its quotes repaired.
SELECT * FROM COHORT_ANALYSIS(
    events,
    cohort_date := DATE_TRUNC('week', first_purchase_date),
    activity_date := DATE_TRUNC('week', event_time),
    user_id := user_id,
    metric := COUNT(DISTINCT order_id),
    filters := [store_id = 'store_123', event_type = 'purchase']
);
