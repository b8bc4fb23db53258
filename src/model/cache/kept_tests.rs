//! What is kept, and what goes first.

use super::*;
use crate::tensor::{DataType, Tensor};
use proptest::prelude::*;

const AGE: Duration = Duration::from_secs(10);

fn hash(number: u8) -> Hash {
    [number; 32]
}

fn entry(number: u8, bytes: usize, made: Instant) -> Arc<Entry> {
    let tensor = |length| Tensor::of(DataType::Uint8, [length].into(), vec![number; length]).unwrap();
    let outputs = vec![NamedTensor { name: "y".into(), tensor: tensor(bytes) }];
    Arc::new(Entry { question: Question { scope: None, inputs: [tensor(1)].into() }, outputs, made })
}

fn one(bytes: usize) -> usize {
    let entry = entry(0, bytes, Instant::now());
    size(&entry.question, &entry.outputs)
}

#[test]
fn who_was_not_asked_for_longest_makes_room() {
    let now = Instant::now();
    let mut kept = Kept::new(3 * one(100), AGE);
    (0..3).for_each(|number| kept.put(hash(number), entry(number, 100, now), now));
    assert!(kept.get(&hash(0), now).is_some());
    kept.put(hash(3), entry(3, 100, now), now);
    let there = |kept: &mut Kept| (0..4).filter(|n| kept.get(&hash(*n), now).is_some()).collect::<Vec<_>>();
    assert_eq!(there(&mut kept), [0, 2, 3]);
    assert_eq!((kept.bytes(), kept.take_gone().squeezed), (3 * one(100), 1));
    kept.put(hash(4), entry(4, 200, now), now);
    assert_eq!(kept.take_gone().squeezed, 2, "as many as it takes");
}

#[test]
fn what_is_larger_than_all_there_is_drives_nobody_out() {
    let now = Instant::now();
    let mut kept = Kept::new(one(100), AGE);
    kept.put(hash(1), entry(1, 100, now), now);
    kept.put(hash(2), entry(2, 101, now), now);
    assert!(kept.get(&hash(1), now).is_some() && kept.get(&hash(2), now).is_none());
}

#[test]
fn an_answer_is_as_old_as_its_run_however_often_it_is_asked_for() {
    let now = Instant::now();
    let mut kept = Kept::new(1 << 20, AGE);
    kept.put(hash(1), entry(1, 1, now), now);
    let almost = now + AGE - Duration::from_nanos(1);
    assert!(kept.get(&hash(1), almost).is_some());
    assert!(kept.get(&hash(1), now + AGE).is_none());
    let gone = kept.take_gone();
    assert_eq!((kept.bytes(), gone.aged, gone.squeezed), (0, 1, 0));
}

#[test]
fn what_is_too_old_goes_though_nobody_asks() {
    let now = Instant::now();
    let mut kept = Kept::new(1 << 20, AGE);
    kept.put(hash(1), entry(1, 1, now), now);
    kept.put(hash(2), entry(2, 1, now + AGE / 2), now + AGE / 2);
    kept.get(&hash(1), now + AGE / 2);
    kept.sweep(now + AGE);
    assert_eq!((kept.entries.len(), kept.take_gone().aged), (1, 1));
    assert!(kept.get(&hash(2), now + AGE).is_some());
}

#[derive(Clone, Debug)]
enum Act {
    Get(u8),
    Put(u8, usize),
    Wait(u64),
    Sweep,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0_u8..8).prop_map(Act::Get),
        4 => ((0_u8..8), 0_usize..600).prop_map(|(number, bytes)| Act::Put(number, bytes)),
        1 => (0_u64..6).prop_map(Act::Wait),
        1 => Just(Act::Sweep),
    ]
}

proptest! {
    /// Against a list that is walked from end to end: the least recently used stands first.
    #[test]
    fn it_does_as_a_plain_list_would(acts in prop::collection::vec(act(), 1..200)) {
        let most = 4 * one(300);
        let mut kept = Kept::new(most, AGE);
        let mut list: Vec<(u8, usize, Instant)> = Vec::new();
        let mut now = Instant::now();
        for act in acts {
            match act {
                Act::Wait(seconds) => now += Duration::from_secs(seconds),
                Act::Sweep => {
                    kept.sweep(now);
                    list.retain(|(_, _, made)| now - *made < AGE);
                    prop_assert_eq!(kept.entries.len(), list.len());
                }
                Act::Get(number) => {
                    let found = kept.get(&hash(number), now).map(|entry| entry.outputs[0].tensor.data().len());
                    let at = list.iter().position(|(known, ..)| *known == number);
                    let expected = at.map(|at| list.remove(at)).filter(|(_, _, made)| now - *made < AGE);
                    list.extend(expected);
                    prop_assert_eq!(found, expected.map(|(_, bytes, _)| bytes));
                }
                Act::Put(number, bytes) => {
                    kept.put(hash(number), entry(number, bytes, now), now);
                    list.retain(|(known, _, made)| *known != number && now - *made < AGE);
                    if one(bytes) <= most {
                        let total = |list: &[(u8, usize, Instant)]| list.iter().map(|one_| one(one_.1)).sum::<usize>();
                        while total(&list) + one(bytes) > most {
                            list.remove(0);
                        }
                        list.push((number, bytes, now));
                    }
                }
            }
            kept.take_gone();
            let bytes: usize = kept.entries.values().map(|held| held.size).sum();
            prop_assert!(kept.bytes() <= most && kept.bytes() == bytes);
            prop_assert_eq!((kept.used.len(), kept.came.len()), (kept.entries.len(), kept.entries.len()));
        }
    }
}
