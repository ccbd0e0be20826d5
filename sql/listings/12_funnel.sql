-- Listing 12.
SELECT * FROM FUNNEL(
    events,
    steps := [
        event_type = 'page_view' AND
            page = '/products',
        event_type = 'product_view',
        event_type = 'add_to_cart',
        event_type = 'checkout_start',
        event_type = 'purchase'
    ],
    window := INTERVAL '30' MINUTE,
    group_by := [device_type,
        utm_source]
);
