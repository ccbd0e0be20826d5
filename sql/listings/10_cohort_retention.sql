-- Listing 10.
WITH cohorts AS (
    SELECT
        user_id,
        DATE_TRUNC('week', MIN(event_time)) AS cohort_week
    FROM events
    WHERE event_type = 'purchase'
        AND store_id = 'store_123'
    GROUP BY user_id
),
activity AS (
    SELECT
        e.user_id,
        c.cohort_week,
        DATE_TRUNC('week', e.event_time) AS activity_week
    FROM events e
    JOIN cohorts c ON e.user_id = c.user_id
    WHERE e.event_type = 'purchase'
        AND e.store_id = 'store_123'
)
SELECT
    cohort_week,
    DATE_DIFF('week', cohort_week, activity_week) AS weeks_since_cohort,
    COUNT(DISTINCT user_id) AS active_users
FROM activity
GROUP BY cohort_week, weeks_since_cohort
ORDER BY cohort_week, weeks_since_cohort;
