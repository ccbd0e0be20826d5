-- How messages of Segment's protocol (POST /v1/track, /v1/page, /v1/batch ...) become rows of the table events. The server makes these two
-- tables when the first message comes and reads them again whenever they change: change a rule with UPDATE, add one with INSERT. This file can
-- be run again; rules that are there stay as they are.

-- What a message is called. `event` is the name of a track call; empty for all others of the type. A track call that is not listed is called by its
-- name in lower case, `Signed Up` signed_up. With item_type each of the message's products becomes a row of its own, of that type.
CREATE TABLE IF NOT EXISTS segment_events (
    type       text,
    event      text,
    event_type text NOT NULL CHECK (event_type <> ''),
    item_type  text,
    PRIMARY KEY (type, event)
);

INSERT INTO segment_events (type, event, event_type, item_type) VALUES
    ('page', '', 'page_view', NULL),
    ('screen', '', 'screen_view', NULL),
    ('identify', '', 'identify', NULL),
    ('group', '', 'group', NULL),
    ('alias', '', 'alias', NULL),
    ('track', 'Products Searched', 'search', NULL),
    ('track', 'Product List Viewed', 'product_list_view', NULL),
    ('track', 'Product Clicked', 'product_click', NULL),
    ('track', 'Product Viewed', 'product_view', NULL),
    ('track', 'Product Added', 'add_to_cart', NULL),
    ('track', 'Product Removed', 'remove_from_cart', NULL),
    ('track', 'Cart Viewed', 'cart_view', NULL),
    ('track', 'Checkout Started', 'checkout_start', NULL),
    ('track', 'Checkout Step Viewed', 'checkout_step', NULL),
    ('track', 'Checkout Step Completed', 'checkout_step_done', NULL),
    ('track', 'Payment Info Entered', 'payment_info', NULL),
    -- One purchase row an order, so that COUNT(*) counts orders and SUM(revenue) is revenue; what was bought is in the rows of its items,
    -- which have no revenue.
    ('track', 'Order Completed', 'purchase', 'purchase_item'),
    ('track', 'Order Refunded', 'refund', NULL),
    ('track', 'Order Cancelled', 'order_cancelled', NULL)
ON CONFLICT DO NOTHING;

-- Where a column's value is: the first path that leads to something. `a.b` is a member, `a[].b` the sum over a list, `product.b` a member of
-- the item's product, `=text` a constant (which a store's write key leaves out for the store). A rule for one event_type goes before the one for all
-- (''). A column without a value gets its DEFAULT; what no rule takes stays in properties.
CREATE TABLE IF NOT EXISTS segment_columns (
    column_name text,
    event_type  text,
    paths       text[] NOT NULL,
    PRIMARY KEY (column_name, event_type)
);

INSERT INTO segment_columns (column_name, event_type, paths) VALUES
    ('event_time', '', '{timestamp,originalTimestamp,sentAt}'),
    ('user_id', '', '{userId}'),
    ('session_id', '', '{properties.session_id,context.sessionId,context.session_id,anonymousId,userId,messageId}'),
    ('store_id', '', '{properties.store_id,context.store_id,=main}'),
    ('country', '', '{context.location.country}'),
    ('referrer', '', '{properties.referrer,context.page.referrer}'),
    ('utm_source', '', '{context.campaign.source}'),
    ('utm_medium', '', '{context.campaign.medium}'),
    ('utm_campaign', '', '{context.campaign.name}'),
    ('page', '', '{properties.path,context.page.path}'),
    ('page', 'screen_view', '{name}'),
    ('product_id', '', '{properties.product_id,properties.sku}'),
    ('product_id', 'purchase_item', '{product.product_id,product.id,product.sku}'),
    ('product_category', '', '{properties.category}'),
    ('product_category', 'purchase_item', '{product.category}'),
    ('order_id', '', '{properties.order_id,properties.orderId}'),
    ('quantity', '', '{properties.quantity}'),
    ('quantity', 'purchase', '{properties.quantity,"properties.products[].quantity"}'),
    ('quantity', 'purchase_item', '{product.quantity,=1}'),
    ('revenue', 'purchase', '{properties.revenue,properties.total}'),
    ('revenue', 'refund', '{properties.revenue,properties.total}')
ON CONFLICT DO NOTHING;
