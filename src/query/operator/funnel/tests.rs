//! The search and the aggregate against an evaluator that tries every chain there is.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, StringViewArray, TimestampMicrosecondArray};
use arrow::compute::take;
use arrow::datatypes::{DataType, FieldRef, Int32Type, Int64Type};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::PhysicalExpr;
use proptest::prelude::*;

use super::chain::{Event, Mode, NEVER, Rules, Search};
use super::path::{Attribution, Shape};
use crate::query::operator::tests as shared;

/// One event as a test has it.
#[derive(Clone, Debug)]
struct Row {
    entity: usize,
    time: i64,
    steps: u64,
    excluded: bool,
    same: Option<u8>,
    key: Option<u8>,
}

#[derive(Clone, Debug)]
struct Case {
    rules: Rules,
    window: Option<i64>,
    attribution: Attribution,
    has_same: bool,
    /// In order of arrival.
    rows: Vec<Row>,
    /// Where the arrivals are cut into batches, and how many groups leave early.
    cut: usize,
    early: usize,
}

fn row(steps: usize) -> impl Strategy<Value = Row> {
    (0..3_usize, 0..7_i64, 0..1_u64 << steps, prop::bool::weighted(0.15), prop::option::weighted(0.85, 0..2_u8), prop::option::of(0..3_u8))
        .prop_map(|(entity, time, steps, excluded, same, key)| Row { entity, time, steps, excluded, same, key })
}

fn case() -> impl Strategy<Value = Case> {
    let rules = (1..5_usize, prop::sample::select(vec![Mode::Ordered, Mode::Strict, Mode::Any]), any::<bool>(), any::<bool>());
    let rules = rules.prop_map(|(steps, mode, from_first, repeat)| Rules { steps, mode, from_first, repeat });
    let attribution = prop::sample::select(vec![Attribution::First, Attribution::Last, Attribution::Step1]);
    rules.prop_flat_map(move |rules| {
        let rows = prop::collection::vec(row(rules.steps), 0..12);
        (Just(rules), prop::option::of(0..5_i64), attribution.clone(), any::<bool>(), rows, any::<prop::sample::Index>(), 0..3_usize)
            .prop_map(|(rules, window, attribution, has_same, rows, cut, early)| {
                let cut = cut.index(rows.len() + 1);
                Case { rules, window, attribution, has_same, rows, cut, early }
            })
    })
}

/// A chain by the positions of its events: the one with the greatest key is taken.
type Key = (usize, std::cmp::Reverse<usize>, i64, Vec<usize>, usize);

/// All chains that begin as `chain` does (positions and steps), each offered by its key.
fn chains(case: &Case, events: &[Row], chain: &mut Vec<(usize, usize)>, best: &mut Option<(Key, Vec<i64>)>) {
    let Rules { steps, mode, from_first, repeat } = case.rules;
    let mut taken: Vec<usize> = chain.iter().map(|(_, step)| *step).collect();
    taken.sort_unstable();
    if !chain.is_empty() && taken.iter().copied().eq(0..chain.len()) {
        let positions: Vec<usize> = chain.iter().map(|(position, _)| *position).collect();
        let times: Vec<i64> = positions.iter().map(|position| events[*position].time).collect();
        let first = chain.iter().find(|(_, step)| *step == 0).map_or(0, |(position, _)| *position);
        let end = *positions.last().unwrap();
        let start = if from_first { times[0] } else { 0 };
        let key = (chain.len(), std::cmp::Reverse(end), start, positions.into_iter().rev().collect(), first);
        if best.as_ref().is_none_or(|(known, _)| key > *known) {
            *best = Some((key, times));
        }
    }
    for (position, event) in events.iter().enumerate() {
        for step in 0..steps {
            if event.steps & 1 << step == 0 || taken.contains(&step) || (mode != Mode::Any && step != chain.len()) {
                continue;
            }
            if let (Some((last, _)), Some((start, _))) = (chain.last().copied(), chain.first().copied()) {
                let from = if from_first { start } else { last };
                let between = events.iter().take(position).skip(last + 1).any(|event| event.excluded || mode == Mode::Strict);
                let later = position > last || (repeat && position == last);
                let within = case.window.is_none_or(|window| event.time - events[from].time <= window);
                let same = !case.has_same || (event.same.is_some() && event.same == events[last].same);
                if !later || between || !within || !same {
                    continue;
                }
            }
            chain.push((position, step));
            chains(case, events, chain, best);
            chain.pop();
        }
    }
}

/// How far an entity gets, its times, and what it is grouped by.
fn plain(case: &Case, entity: usize) -> (usize, Vec<i64>, Option<Option<u8>>) {
    let mut events: Vec<Row> = case.rows.iter().filter(|row| row.entity == entity).cloned().collect();
    events.sort_by_key(|event| event.time);
    let mut best = None;
    chains(case, &events, &mut Vec::new(), &mut best);
    let (reached, times, first) = match best {
        Some(((steps, _, _, _, first), times)) => (steps, times, first),
        None => (0, Vec::new(), 0),
    };
    let key = match case.attribution {
        Attribution::First => events.first().map(|event| event.key),
        Attribution::Last => events.last().map(|event| event.key),
        Attribution::Step1 => (reached > 0).then(|| events[first].key),
    };
    (reached, times, key)
}

fn arrays(case: &Case) -> Vec<ArrayRef> {
    let rows = &case.rows;
    let text = |value: Option<u8>| value.map(|value| format!("value {value} that is longer than twelve bytes"));
    let mut arrays: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| Some(row.time)).collect::<TimestampMicrosecondArray>()),
        Arc::new((0..rows.len() as i64).map(Some).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|_| case.window).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| if row.excluded { Some(true) } else { None }).collect::<BooleanArray>()),
    ];
    for step in 0..case.rules.steps {
        // False and unknown are alike.
        let condition = |row: &Row| if row.steps & 1 << step != 0 { Some(true) } else { (row.time % 2 == 0).then_some(false) };
        arrays.push(Arc::new(rows.iter().map(condition).collect::<BooleanArray>()));
    }
    arrays.push(Arc::new(rows.iter().map(|row| text(row.key)).collect::<StringViewArray>()));
    if case.has_same {
        arrays.push(Arc::new(rows.iter().map(|row| text(row.same)).collect::<StringViewArray>()));
    }
    arrays
}

fn shape(case: &Case) -> Shape {
    let excludes = case.rows.iter().any(|row| row.excluded);
    Shape { rules: case.rules, attribution: case.attribution, keys: 1, sames: usize::from(case.has_same), excludes }
}

fn accumulator(case: &Case, arrays: &[ArrayRef]) -> Box<dyn GroupsAccumulator> {
    shared::accumulator(&shape(case).function(), arrays)
}

type Found = Vec<(usize, Vec<i64>, Option<String>)>;

fn read(result: &ArrayRef, found: &mut Found) {
    let result = result.as_struct();
    let (reached, gaps, keys) =
        (result.column(0).as_primitive::<Int32Type>(), result.column(1).as_list::<i32>(), result.column(2).as_string_view());
    for row in 0..result.len() {
        let gaps = gaps.value(row).as_primitive::<Int64Type>().values().to_vec();
        found.push((reached.value(row) as usize, gaps, keys.is_valid(row).then(|| keys.value(row).to_owned())));
    }
}

/// Through states and merges: the first part of the arrivals in one accumulator, the rest in another or row by row.
fn aggregated(case: &Case) -> Found {
    let arrays = arrays(case);
    let part = |from: usize, to: usize| arrays.iter().map(|array| array.slice(from, to - from)).collect::<Vec<_>>();
    let owners: Vec<usize> = case.rows.iter().map(|row| row.entity).collect();
    let (mut first, mut whole) = (accumulator(case, &arrays), accumulator(case, &arrays));
    first.update_batch(&part(0, case.cut), &owners[..case.cut], None, 3).unwrap();
    // The rest comes as states of single rows, in another order than it arrived in.
    let rest = part(case.cut, owners.len());
    let states = whole.convert_to_state(&rest, None).unwrap();
    let backwards = arrow::array::UInt32Array::from_iter_values((0..(owners.len() - case.cut) as u32).rev());
    let states: Vec<ArrayRef> = states.iter().map(|state| take(state, &backwards, None).unwrap()).collect();
    let reversed: Vec<usize> = owners[case.cut..].iter().rev().copied().collect();
    whole.merge_batch(&states, &reversed, 3).unwrap();
    let mut merged = 0;
    for emit in [EmitTo::First(case.early), EmitTo::All] {
        let states = first.state(emit).unwrap();
        let entities: Vec<usize> = (merged..merged + states[0].len()).collect();
        merged += states[0].len();
        whole.merge_batch(&states, &entities, 3).unwrap();
    }
    let mut found = Vec::new();
    read(&whole.evaluate(EmitTo::First(case.early)).unwrap(), &mut found);
    read(&whole.evaluate(EmitTo::All).unwrap(), &mut found);
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn an_entity_gets_as_far_as_its_longest_chain(case in case()) {
        let found = aggregated(&case);
        prop_assert_eq!(found.len(), 3);
        for (entity, (reached, gaps, key)) in found.into_iter().enumerate() {
            let (steps, times, own_key) = plain(&case, entity);
            let expected: Vec<i64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let own_key = own_key.flatten().map(|key| format!("value {key} that is longer than twelve bytes"));
            prop_assert_eq!((reached, gaps, key), (steps, expected, own_key), "entity {}", entity);
        }
    }
}

fn smaller(case: &Case, types: &[FieldRef]) -> Arc<dyn crate::catalog::bind::Settle> {
    let arguments: Vec<Arc<dyn PhysicalExpr>> = types.iter().map(|_| datafusion::physical_expr::expressions::lit(1_i64)).collect();
    super::settle(&shape(case).function(), &arguments, types).unwrap()
}

/// Through a state that was settled: the events before the horizon, and some of those after it, then the others.
fn settled(case: &Case, horizon: i64) -> (Found, Found) {
    let arrays = arrays(case);
    // What is older has come before; of the rest every other row.
    let (before, after): (Vec<u32>, Vec<u32>) =
        (0..case.rows.len() as u32).partition(|row| case.rows[*row as usize].time < horizon || row % 2 == 0);
    let part = |rows: &[u32]| {
        let rows = arrow::array::UInt32Array::from(rows.to_vec());
        arrays.iter().map(|array| take(array, &rows, None).unwrap()).collect::<Vec<_>>()
    };
    let owners = |rows: &[u32]| rows.iter().map(|row| case.rows[*row as usize].entity).collect::<Vec<_>>();
    let smaller = smaller(case, &shared::fields(&arrays));
    let found = |settles: usize| {
        let mut first = accumulator(case, &arrays);
        first.update_batch(&part(&before), &owners(&before), None, 3).unwrap();
        let mut states = first.state(EmitTo::All).unwrap();
        for _ in 0..settles {
            states = smaller.settle(&states, horizon).unwrap();
        }
        let mut whole = accumulator(case, &arrays);
        whole.merge_batch(&states, &[0, 1, 2], 3).unwrap();
        whole.update_batch(&part(&after), &owners(&after), None, 3).unwrap();
        let mut found = Vec::new();
        read(&whole.evaluate(EmitTo::All).unwrap(), &mut found);
        found
    };
    (found(2), found(0))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16_384))]
    #[test]
    fn what_settling_takes_away_decides_nothing((case, horizon) in (case(), 0..8_i64)) {
        let (smaller, whole) = settled(&case, horizon);
        prop_assert_eq!(smaller, whole);
    }
}

#[test]
fn of_an_entity_that_comes_for_years_little_is_kept() {
    let rules = Rules { steps: 3, mode: Mode::Ordered, from_first: false, repeat: true };
    let row = |time: i64, steps: u64, excluded: bool| Row { entity: 0, time, steps, excluded, same: None, key: None };
    let kept = |mode: Mode, excluded: bool, from_first: bool| {
        let mut rows: Vec<Row> = (0..4_000).map(|time| row(time, 1, excluded && time % 100 == 50)).collect();
        rows.push(row(11, 2, false));
        let rules = Rules { mode, from_first, ..rules };
        let case = Case { rules, window: Some(10), attribution: Attribution::Step1, has_same: false, rows, cut: 0, early: 0 };
        let arrays = arrays(&case);
        let mut events = accumulator(&case, &arrays);
        events.update_batch(&arrays, &vec![0; case.rows.len()], None, 1).unwrap();
        let states = events.state(EmitTo::All).unwrap();
        let states = smaller(&case, &shared::fields(&arrays)).settle(&states, 4_000).unwrap();
        (states[0].as_binary::<i64>().value(0).len() - 8) / 24
    };
    // Two windows before the horizon, and the chain of the first steps, whose time two events have.
    assert_eq!(kept(Mode::Ordered, false, false), 20 + 2);
    assert_eq!(kept(Mode::Ordered, false, true), 10 + 2);
    assert_eq!(kept(Mode::Ordered, true, true), 10 + 2 + 1);
    assert_eq!(kept(Mode::Any, false, true), 10 + 2);
}

fn event(time: i64, order: i64, steps: u64) -> Event {
    Event { time, order: order * 2, steps }
}

#[test]
fn every_start_is_tried() {
    let rules = Rules { steps: 3, mode: Mode::Ordered, from_first: true, repeat: true };
    let mut search = Search::new(rules, Some(10));
    // From the first a, b is in time and c is not; from the second, both are.
    let events = [event(0, 0, 1), event(5, 1, 1), event(6, 2, 2), event(15, 3, 4)];
    assert_eq!(search.chain(&events, None).unwrap().times, [5, 6, 15]);
    // The search forgets the entity before.
    assert_eq!(search.chain(&events[..1], None).unwrap().steps, 1);
    assert_eq!(search.chain(&[], None).unwrap().steps, 0);
}

#[test]
fn a_null_is_the_same_as_nothing() {
    let rules = Rules { steps: 2, mode: Mode::Ordered, from_first: false, repeat: true };
    let events = [event(0, 0, 1), event(1, 1, 3), event(2, 2, 2)];
    assert_eq!(Search::new(rules, None).chain(&events, Some(&[NEVER, NEVER, NEVER])).unwrap().steps, 1);
    assert_eq!(Search::new(rules, None).chain(&events, Some(&[7, NEVER, 7])).unwrap().times, [0, 2]);
}

#[test]
fn what_comes_after_a_complete_chain_is_not_kept() {
    let rules = Rules { steps: 2, mode: Mode::Ordered, from_first: false, repeat: true };
    let row = |time: i64, steps: u64| Row { entity: 0, time, steps, excluded: false, same: None, key: None };
    let case = |mode: Mode, excluded: bool| {
        let mut rows = vec![row(0, 1), row(1, 1), row(2, 2)];
        rows.extend((3..40).map(|time| row(time, 1 + time as u64 % 2)));
        rows[20].excluded = excluded;
        let rules = Rules { mode, ..rules };
        Case { rules, window: None, attribution: Attribution::Last, has_same: false, rows, cut: 0, early: 0 }
    };
    let kept = |case: &Case| {
        let arrays = arrays(case);
        let mut events = accumulator(case, &arrays);
        events.update_batch(&arrays, &vec![0; case.rows.len()], None, 1).unwrap();
        (events.state(EmitTo::All).unwrap()[0].as_binary::<i64>().value(0).len() - 8) / 24
    };
    assert_eq!(kept(&case(Mode::Ordered, false)), 3);
    // What comes later may break the chain.
    assert_eq!(kept(&case(Mode::Ordered, true)), 40);
    assert_eq!(kept(&case(Mode::Strict, false)), 40);
}

#[test]
fn combinations_are_bounded() {
    let rules = Rules { steps: 64, mode: Mode::Any, from_first: false, repeat: false };
    let events: Vec<Event> = (0..64).map(|step| event(0, step, 1 << step)).collect();
    assert!(Search::new(rules, Some(1)).chain(&events, None).is_err());
    // A span alone needs none.
    let rules = Rules { from_first: true, ..rules };
    assert_eq!(Search::new(rules, Some(1)).chain(&events, None).unwrap().steps, 64);
}

#[test]
fn types_are_what_the_plan_says() {
    let shape = Shape {
        rules: Rules { steps: 1, mode: Mode::Ordered, from_first: false, repeat: true },
        attribution: Attribution::First,
        keys: 1,
        sames: 0,
        excludes: false,
    };
    let types = [DataType::Int64, DataType::Int64, DataType::Int64, DataType::Boolean, DataType::Boolean, DataType::Date32];
    let DataType::Struct(fields) = shape.function().return_type(&types).unwrap() else { panic!("a struct") };
    assert_eq!(fields.iter().map(|field| field.name().as_str()).collect::<Vec<_>>(), ["reached", "gaps", "key_0"]);
    assert_eq!(*fields[2].data_type(), DataType::Date32);
}
