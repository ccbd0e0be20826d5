//! A shop's visitors: sessions that walk from the first page towards a purchase, and drop out on the way.
//!
//! Sessions begin at random, more of them in the evening and on Sunday. Each has one next step at a time in a queue ordered by
//! time; taking a step puts out an event and queues the step after it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::event::{Event, TIME_CHARS, write_time};
use crate::clock::Micros;

const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;
const DAY_US: i64 = 86_400 * SECOND_US;

/// Stores and their share of the visitors.
const STORES: [(u32, u32); 10] = [(123, 30), (101, 18), (102, 13), (103, 10), (104, 8), (105, 7), (106, 5), (107, 4), (108, 3), (109, 2)];
const DEVICES: [(&str, u32); 3] = [("mobile", 61), ("desktop", 32), ("tablet", 7)];
const COUNTRIES: [(&str, u32); 7] = [("DE", 40), ("FR", 15), ("GB", 15), ("US", 12), ("NL", 8), ("AT", 6), ("CH", 4)];
/// Referrer, source, medium, campaign.
const CHANNELS: [([&str; 4], u32); 6] = [
    (["", "", "", ""], 30),
    (["https://www.google.com/", "google", "cpc", "brand"], 25),
    (["https://www.google.com/", "google", "organic", ""], 18),
    (["https://www.instagram.com/", "instagram", "paid_social", "spring"], 14),
    (["", "newsletter", "email", "weekly"], 8),
    (["https://blog.example/", "partner", "affiliate", ""], 5),
];
const CATEGORIES: [&str; 6] = ["shoes", "shirts", "hats", "bags", "watches", "outdoor"];

/// Where a session is. The numbers of [`Session::after`] make about five events a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Page,
    Product,
    Cart,
    Checkout,
    Failed,
    Purchase,
}

/// Events of a session on average, as the test below holds.
const EVENTS_PER_SESSION: f64 = 5.1;

/// What goes wrong in a shop, and when.
#[derive(Clone, Debug)]
pub struct Plan {
    failures: [(Micros, Micros); 2],
    slump: (Micros, Micros),
}

const SLUMP_STORE: u32 = 105;

impl Plan {
    /// Two rows of failing payments, one of them soon, and a slump of one store.
    pub fn around(now: Micros) -> Plan {
        let between = |from: i64, to: i64| (now + from * MINUTE_US, now + to * MINUTE_US);
        Plan { failures: [between(-45, -37), between(2, 6)], slump: between(-30, -5) }
    }

    /// What is planted, in words.
    pub fn lines(&self) -> Vec<String> {
        let show = |(from, to): (Micros, Micros)| {
            let text = |time| {
                let mut text = [0; TIME_CHARS];
                write_time(time, &mut text);
                String::from_utf8_lossy(&text[..16]).into_owned()
            };
            format!("{} to {} UTC", text(from), &text(to)[11..])
        };
        let mut lines: Vec<String> =
            self.failures.iter().map(|span| format!("{}: payments fail three times as often", show(*span))).collect();
        lines.push(format!("{}: store_{SLUMP_STORE} has half as many orders", show(self.slump)));
        lines
    }

    fn failing(&self, time: Micros) -> f64 {
        if self.failures.iter().any(|(from, to)| (*from..*to).contains(&time)) { 0.36 } else { 0.12 }
    }

    fn buying(&self, time: Micros, store: u32) -> f64 {
        if store == SLUMP_STORE && (self.slump.0..self.slump.1).contains(&time) { 0.5 } else { 1.0 }
    }
}

/// A visitor's visit.
#[derive(Clone, Copy, Debug)]
struct Session {
    id: u64,
    user: u32,
    store: u32,
    device: &'static str,
    country: &'static str,
    channel: [&'static str; 4],
    product: u32,
    quantity: u32,
}

/// What was put out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batch {
    /// Events.
    pub events: i64,
    /// Purchases among them.
    pub orders: i64,
}

/// All visitors of all stores, in order of time.
pub struct Traffic {
    random: StdRng,
    plan: Plan,
    sessions_per_second: f64,
    next_arrival: Micros,
    queue: BinaryHeap<Reverse<(Micros, u64, Step)>>,
    open: std::collections::HashMap<u64, Session>,
}

impl Traffic {
    /// From `start` on, about `rate` events a second.
    pub fn new(seed: u64, rate: u32, start: Micros, plan: Plan) -> Traffic {
        Traffic {
            random: StdRng::seed_from_u64(seed),
            plan,
            sessions_per_second: f64::from(rate) / EVENTS_PER_SESSION,
            next_arrival: start,
            queue: BinaryHeap::new(),
            open: std::collections::HashMap::new(),
        }
    }

    /// Puts out what happens until `now`, but no more than `most` events.
    pub fn until(&mut self, now: Micros, most: usize, mut put: impl FnMut(&Event)) -> Batch {
        let mut batch = Batch::default();
        while (batch.events as usize) < most {
            let due = self.queue.peek().map_or(Micros::MAX, |Reverse((time, ..))| *time);
            if due.min(self.next_arrival) > now {
                break;
            }
            if self.next_arrival <= due {
                self.arrive();
                continue;
            }
            let Some(Reverse((time, id, step))) = self.queue.pop() else { break };
            if let Some(event) = self.take(time, id, step) {
                put(&event);
                batch.events += 1;
                batch.orders += i64::from(step == Step::Purchase);
            }
        }
        batch
    }

    /// A session begins, and the time of the next one is drawn.
    fn arrive(&mut self) {
        let time = self.next_arrival;
        let random = &mut self.random;
        let session = Session {
            id: random.random::<u64>() >> 20,
            user: random.random_range(0..50_000),
            store: weighted(random, &STORES),
            device: weighted(random, &DEVICES),
            country: weighted(random, &COUNTRIES),
            channel: weighted(random, &CHANNELS),
            product: random.random_range(1..400),
            quantity: 1 + random.random_range(0..10) / 7,
        };
        self.queue.push(Reverse((time, session.id, Step::Page)));
        self.open.insert(session.id, session);
        let wait = -(1.0 - random.random::<f64>()).ln() / (self.sessions_per_second * season(time));
        self.next_arrival = time + 1 + (wait * SECOND_US as f64) as i64;
    }

    /// A session's step: its event, and the step after it.
    fn take(&mut self, time: Micros, id: u64, step: Step) -> Option<Event> {
        let session = *self.open.get(&id)?;
        let event = self.event(time, &session, step);
        match self.after(time, &session, step) {
            Some(next) => {
                let wait = self.random.random_range(3 * SECOND_US..40 * SECOND_US);
                self.queue.push(Reverse((time + wait, id, next)));
            }
            None => drop(self.open.remove(&id)),
        }
        if let Some(session) = self.open.get_mut(&id).filter(|_| step == Step::Page) {
            session.product = self.random.random_range(1..400);
        }
        Some(event)
    }

    /// The next step, or none for a visitor who leaves.
    fn after(&mut self, time: Micros, session: &Session, step: Step) -> Option<Step> {
        let at = self.random.random::<f64>();
        // A desktop has room to read and to type.
        let ease = if session.device == "desktop" { 1.25 } else { 1.0 };
        match step {
            Step::Page if at < 0.45 => Some(Step::Product),
            Step::Page if at < 0.85 => Some(Step::Page),
            Step::Product if at < 0.16 * ease => Some(Step::Cart),
            Step::Product if at < 0.60 => Some(Step::Page),
            Step::Product if at < 0.80 => Some(Step::Product),
            Step::Cart if at < 0.50 * ease => Some(Step::Checkout),
            Step::Cart if at < 0.70 => Some(Step::Page),
            Step::Checkout if at < self.plan.failing(time) => Some(Step::Failed),
            Step::Checkout | Step::Failed => {
                let buys = self.random.random::<f64>() < 0.72 * self.plan.buying(time, session.store);
                buys.then_some(Step::Purchase)
            }
            _ => None,
        }
    }

    fn event(&mut self, time: Micros, session: &Session, step: Step) -> Event {
        let (kind, page) = match step {
            Step::Page => ("page_view", "/products"),
            Step::Product => ("product_view", "/product"),
            Step::Cart => ("add_to_cart", "/product"),
            Step::Checkout => ("checkout_start", "/checkout"),
            Step::Failed => ("payment_failed", "/checkout"),
            Step::Purchase => ("purchase", "/checkout/done"),
        };
        let about_product = step != Step::Page;
        let bought = step == Step::Purchase;
        let [referrer, source, medium, campaign] = session.channel;
        // A product always has the same price.
        let price = 999 + session.product * 37 % 9_000;
        Event {
            time,
            id: self.random.random(),
            kind,
            user: session.user,
            session: session.id,
            store: session.store,
            device: session.device,
            country: session.country,
            referrer: if step == Step::Page { referrer } else { "" },
            source,
            medium,
            campaign,
            page,
            product: if about_product { session.product } else { 0 },
            category: if about_product { CATEGORIES[session.product as usize % CATEGORIES.len()] } else { "" },
            order: if bought { session.id.max(1) } else { 0 },
            quantity: if bought || step == Step::Cart { session.quantity } else { 0 },
            cents: if bought { price * session.quantity } else { 0 },
            properties: if step == Step::Failed { r#"{"reason": "card_declined"}"# } else { "" },
        }
    }
}

fn weighted<T: Copy>(random: &mut StdRng, choices: &[(T, u32)]) -> T {
    let total: u32 = choices.iter().map(|(_, weight)| weight).sum();
    let mut at = random.random_range(0..total);
    for (choice, weight) in choices {
        if at < *weight {
            return *choice;
        }
        at -= weight;
    }
    choices[0].0
}

/// Visitors compared with the week's mean: most at eight in the evening UTC, fewest at eight in the morning; a fifth more on Sundays.
fn season(time: Micros) -> f64 {
    let turn = std::f64::consts::TAU;
    let of_day = time.rem_euclid(DAY_US) as f64 / DAY_US as f64;
    // 1970-01-01 was a Thursday, so Sunday noon lies 3.5 days into the week.
    let of_week = time.rem_euclid(7 * DAY_US) as f64 / (7 * DAY_US) as f64;
    (1.0 + 0.5 * (turn * (of_day - 20.0 / 24.0)).cos()) * (1.0 + 0.2 * (turn * (of_week - 0.5)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wednesday 2026-01-07 14:00:00 UTC.
    const START: Micros = 1_767_794_400_000_000;

    fn hour(plan: Plan) -> Vec<(Micros, u32, &'static str)> {
        let mut traffic = Traffic::new(1, 200, START, plan);
        let mut events = Vec::new();
        traffic.until(START + 60 * MINUTE_US, usize::MAX, |event| events.push((event.time, event.store, event.kind)));
        events
    }

    #[test]
    fn sessions_flow_in_order_at_the_rate_and_narrow_towards_the_purchase() {
        let events = hour(Plan::around(START - DAY_US));
        assert!(events.is_sorted_by_key(|event| event.0));
        let rate = events.len() as f64 / 3_600.0 / season(START + 30 * MINUTE_US);
        assert!((170.0..230.0).contains(&rate), "{rate}");
        let count = |kind| events.iter().filter(|event| event.2 == kind).count();
        let steps = ["page_view", "product_view", "add_to_cart", "checkout_start", "purchase"].map(count);
        assert!(steps.is_sorted_by(|more, fewer| more > fewer) && steps[4] > 1_000, "{steps:?}");
    }

    #[test]
    fn what_is_planted_shows() {
        let count = |events: &[(Micros, u32, &str)], kind: &str, store: Option<u32>| {
            events.iter().filter(|event| event.2 == kind && store.is_none_or(|store| store == event.1)).count() as f64
        };
        let (calm, failing) = (hour(Plan::around(START - DAY_US)), Plan { failures: [(START, START + DAY_US); 2], slump: (0, 0) });
        let ratio = count(&hour(failing), "payment_failed", None) / count(&calm, "payment_failed", None);
        assert!((2.5..4.5).contains(&ratio), "{ratio}");
        let slump = hour(Plan { failures: [(0, 0); 2], slump: (START, START + DAY_US) });
        let ratio = count(&slump, "purchase", Some(SLUMP_STORE)) / count(&calm, "purchase", Some(SLUMP_STORE));
        assert!((0.35..0.65).contains(&ratio), "{ratio}");
    }
}
