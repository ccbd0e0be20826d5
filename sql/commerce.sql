-- The schema that a fresh data directory starts with (`verus serve --no-template` starts empty): the paper's event model,
-- Listing 1, with the columns that its other listings use, and the views that its dashboards read.
--
-- A DEFAULT fills in what an event does not give. It may name the event's other columns, and who sent the event over HTTP: client_ip and
-- client_user_agent. An event from a shop's server says who it is about in its context (Segment's fields): context.ip, context.userAgent. To
-- change a rule: ALTER TABLE events ALTER COLUMN country SET DEFAULT ...

CREATE TABLE events (
    event_id         uuid NOT NULL,
    event_type       text NOT NULL CHECK (event_type <> ''),
    event_time       timestamptz NOT NULL,
    server_timestamp timestamptz NOT NULL DEFAULT now(),
    user_id          text,
    session_id       text NOT NULL,
    -- Dimensions.
    store_id         text NOT NULL,
    device_type      text DEFAULT device_type(coalesce(properties->'context'->>'userAgent', client_user_agent)),
    -- The sender's own address only where the sender is a browser.
    country          text DEFAULT geo_country(coalesce(properties->'context'->>'ip',
                                              CASE WHEN device_type(client_user_agent) IS NOT NULL THEN client_ip END)),
    referrer         text,
    utm_source       text DEFAULT source_of(coalesce(properties->>'url', page), referrer),
    utm_medium       text DEFAULT medium_of(coalesce(properties->>'url', page), referrer),
    utm_campaign     text DEFAULT campaign_of(coalesce(properties->>'url', page)),
    -- Measures and what belongs to one type of event.
    page             text,
    product_id       text,
    product_category text,
    order_id         text,
    quantity         integer,
    revenue          numeric(12,2),
    properties       jsonb,
    event_date       date GENERATED ALWAYS AS (event_time::date) STORED,
    WATERMARK FOR event_time AS event_time - INTERVAL '5 minutes'
) WITH (partition_by = 'store_id', dedup_key = 'event_id', dedup_window = '1 day');

-- Listing 9's dashboard: orders, revenue and customers by minute.
CREATE MATERIALIZED VIEW mv_revenue_by_minute AS
SELECT store_id,
       TUMBLE(event_time, INTERVAL '1' MINUTE) AS window_start,
       COUNT(*) AS order_count,
       SUM(revenue) AS total_revenue,
       COUNT(DISTINCT user_id) AS unique_customers
FROM events
WHERE event_type = 'purchase'
GROUP BY store_id, window_start;

-- One row per store, hour and order, so that COUNT(*) over it counts orders (Listing 15).
CREATE MATERIALIZED VIEW mv_orders_by_hour AS
SELECT store_id,
       TUMBLE(event_time, INTERVAL '1' HOUR) AS window_start,
       order_id,
       SUM(quantity) AS total_quantity,
       SUM(revenue) AS total_revenue
FROM events
WHERE event_type = 'purchase'
GROUP BY store_id, window_start, order_id;

-- Listing 3.
CREATE MATERIALIZED VIEW revenue_by_source AS
SELECT store_id,
       TUMBLE(event_time, INTERVAL '1' MINUTE) AS window,
       utm_source,
       COUNT(*) AS order_count,
       SUM(revenue) AS total_revenue,
       COUNT(DISTINCT user_id) AS unique_customers
FROM events
WHERE event_type = 'purchase'
GROUP BY store_id, window, utm_source;

-- Daily summaries.
CREATE MATERIALIZED VIEW mv_revenue_by_day AS
SELECT store_id,
       TUMBLE(event_time, INTERVAL '1' DAY) AS window_start,
       COUNT(*) AS order_count,
       SUM(revenue) AS total_revenue,
       COUNT(DISTINCT user_id) AS unique_customers
FROM events
WHERE event_type = 'purchase'
GROUP BY store_id, window_start;
