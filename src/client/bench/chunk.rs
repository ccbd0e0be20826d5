//! Events ready to be sent, so that making them does not slow down what is measured.
//!
//! A pool of chunks is made beforehand. A run that is longer than the pool sends it again, moved on in time.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::event::{Event, Form, TIME_CHARS, write_time};
use crate::clock::Micros;

/// Events kept ready in memory: about 300 MB.
const POOL_EVENTS_MAX: u64 = 1_000_000;

/// How far an event may come before or after its time, as from phones with a slow connection.
const DISORDER_US: i64 = 4_000_000;

/// Event type, its share in 10,000, and the page it happens on. Purchases are 2.4 %.
const KINDS: [(&str, u32, &str); 8] = [
    ("page_view", 5_200, "/products"),
    ("product_view", 2_560, "/product"),
    ("add_to_cart", 1_050, "/product"),
    ("search", 350, "/search"),
    ("checkout_start", 450, "/checkout"),
    ("purchase", 240, "/checkout/done"),
    ("payment_failed", 50, "/checkout"),
    ("remove_from_cart", 100, "/cart"),
];
const DEVICES: [&str; 4] = ["mobile", "mobile", "desktop", "tablet"];
const COUNTRIES: [&str; 8] = ["DE", "FR", "GB", "US", "NL", "PL", "ES", "IT"];
const REFERRERS: [&str; 4] = ["", "https://www.google.com/", "https://www.instagram.com/", "https://news.example/"];
const CHANNELS: [[&str; 3]; 6] = [
    ["", "", ""],
    ["google", "cpc", "brand"],
    ["google", "organic", ""],
    ["facebook", "paid_social", "spring"],
    ["newsletter", "email", "weekly"],
    ["affiliate", "referral", "partners"],
];
const CATEGORIES: [&str; 10] = ["shoes", "shirts", "hats", "bags", "watches", "toys", "books", "garden", "kitchen", "outdoor"];

/// How many stores the events come from, and how close they follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Stores, some much larger than others.
    pub stores: u32,
    /// Event time between two events that follow each other, in microseconds.
    pub step_us: i64,
}

impl Default for Traffic {
    /// A thousand stores, a thousand events a second.
    fn default() -> Traffic {
        Traffic { stores: 1_000, step_us: 1_000 }
    }
}

/// What a [`Pool`] is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Equal seeds make equal events.
    pub seed: u64,
    /// Event time of the first event.
    pub start: Micros,
    /// How they are written.
    pub form: Form,
    /// Events to make; less where that would be too much to keep.
    pub total: u64,
    /// Events of a chunk.
    pub chunk: u64,
    /// Pools to share them out to.
    pub connections: u64,
    /// A store that gets a purchase in every chunk.
    pub marker: Option<u32>,
    /// Where they come from.
    pub traffic: Traffic,
}

/// Events of one COPY or INSERT.
#[derive(Debug, Default)]
pub struct Chunk {
    bytes: Vec<u8>,
    /// Of each event: where its time is written, and what it is.
    times: Vec<(usize, Micros)>,
    /// Purchases in it.
    pub purchases: i64,
    /// What they brought in.
    pub cents: i64,
}

impl Chunk {
    /// Events in it.
    pub fn events(&self) -> i64 {
        self.times.len() as i64
    }

    fn add(&mut self, event: &Event, form: Form) {
        let at = event.write(form, &mut self.bytes);
        self.times.push((at, event.time));
        if event.kind == "purchase" {
            self.purchases += 1;
            self.cents += i64::from(event.cents);
        }
    }

    /// Its bytes, all events `later` than they were made for.
    pub fn data(&mut self, later: Micros) -> Bytes {
        if later != 0 {
            for (at, time) in &self.times {
                write_time(time + later, &mut self.bytes[*at..*at + TIME_CHARS]);
            }
        }
        Bytes::copy_from_slice(&self.bytes)
    }
}

/// Makes events, the same for the same seed.
pub struct Maker {
    random: StdRng,
    time: Micros,
    traffic: Traffic,
}

impl Maker {
    /// Events from `start` on.
    pub fn new(seed: u64, start: Micros, traffic: Traffic) -> Maker {
        Maker { random: StdRng::seed_from_u64(seed), time: start, traffic }
    }

    /// The next chunk. With a `marker`, its first event is a purchase in that store.
    pub fn chunk(&mut self, events: u64, form: Form, marker: Option<u32>) -> Chunk {
        let mut chunk = Chunk::default();
        for index in 0..events {
            let mut event = self.event();
            if let (0, Some(store)) = (index, marker) {
                event = Event { kind: "purchase", store, time: self.time, order: event.order.max(1), quantity: 1, cents: 100, ..event };
            }
            chunk.add(&event, form);
        }
        chunk
    }

    fn event(&mut self) -> Event {
        let random = &mut self.random;
        self.time += self.traffic.step_us;
        let mut share = random.random_range(0..10_000);
        let (kind, _, page) = KINDS
            .iter()
            .find(|(_, own, _)| {
                let found = share < *own;
                share = share.wrapping_sub(*own);
                found
            })
            .copied()
            .unwrap_or(KINDS[0]);
        // Some stores are much larger than others.
        let store = 1 + (f64::from(self.traffic.stores) * random.random::<f64>().powi(2)) as u32;
        let user = random.random_range(0..200_000);
        let [source, medium, campaign] = CHANNELS[random.random_range(0..CHANNELS.len())];
        let product = if matches!(kind, "page_view" | "search") { 0 } else { random.random_range(1..5_000) };
        let bought = kind == "purchase";
        let quantity = if bought || kind == "add_to_cart" { random.random_range(1..4) } else { 0 };
        Event {
            time: self.time + random.random_range(-DISORDER_US..=0),
            id: random.random(),
            kind,
            user,
            session: u64::from(user) * 100 + random.random_range(0..10),
            store,
            device: DEVICES[user as usize % DEVICES.len()],
            country: COUNTRIES[user as usize / 7 % COUNTRIES.len()],
            referrer: REFERRERS[random.random_range(0..REFERRERS.len())],
            source,
            medium,
            campaign,
            page,
            product,
            category: if product == 0 { "" } else { CATEGORIES[product as usize % CATEGORIES.len()] },
            order: if bought { random.random_range(1..1 << 40) } else { 0 },
            quantity,
            cents: if bought { quantity * random.random_range(499..20_000) } else { 0 },
            properties: if bought { r#"{"coupon": "WELCOME", "gift": false}"# } else { "" },
        }
    }
}

/// One connection's chunks, which it sends over and over, each time later.
pub struct Pool {
    chunks: Vec<Chunk>,
    sent: usize,
    round_us: Micros,
}

impl Pool {
    /// Makes the events and shares them out, one pool a connection.
    pub fn make(plan: Plan) -> Vec<Pool> {
        let Plan { chunk, connections, traffic, .. } = plan;
        let mut maker = Maker::new(plan.seed, plan.start, traffic);
        let kept = plan.total.min(POOL_EVENTS_MAX).div_ceil(chunk).max(connections);
        let round_us = (kept * chunk) as i64 * traffic.step_us;
        let mut pools: Vec<Pool> = (0..connections).map(|_| Pool { chunks: Vec::new(), sent: 0, round_us }).collect();
        for index in 0..kept {
            pools[(index % connections) as usize].chunks.push(maker.chunk(chunk, plan.form, plan.marker));
        }
        pools
    }

    /// The next chunk, and how much later than it was made for it is sent.
    pub fn next_chunk(&mut self) -> (&mut Chunk, Micros) {
        let (round, index) = (self.sent / self.chunks.len(), self.sent % self.chunks.len());
        self.sent += 1;
        (&mut self.chunks[index], round as i64 * self.round_us)
    }

    /// The next chunk, its last event at about `now`.
    pub fn next_at(&mut self, now: Micros) -> (&mut Chunk, Micros) {
        let (chunk, _) = self.next_chunk();
        let last = chunk.times.last().map_or(now, |(_, time)| *time);
        (chunk, now - last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_repeats_itself_later() {
        let traffic = Traffic::default();
        let start = 1_767_225_600_000_000;
        let plan = Plan { seed: 1, start, form: Form::Csv, total: 20, chunk: 10, connections: 1, marker: Some(7), traffic };
        let mut pool = Pool::make(plan).remove(0);
        let mut send = || {
            let (chunk, later) = pool.next_chunk();
            (chunk.data(later), later, chunk.purchases)
        };
        let (first, second, again) = (send(), send(), send());
        assert_eq!((first.1, second.1, again.1), (0, 0, 20_000));
        assert_eq!(first.0[TIME_CHARS..80], again.0[TIME_CHARS..80]);
        assert_ne!(first.0[..TIME_CHARS], again.0[..TIME_CHARS]);
        assert!(first.2 >= 1 && first.0.iter().filter(|byte| **byte == b'\n').count() == 10);
    }

    #[test]
    fn purchases_are_two_point_four_percent() {
        let chunk = Maker::new(1, 0, Traffic::default()).chunk(50_000, Form::Csv, None);
        assert!((1_100..1_300).contains(&chunk.purchases), "{}", chunk.purchases);
    }
}
