//! Tables and JSON of made-up runs.

use super::*;
use std::time::Instant;

const LENGTHS: Lengths = Lengths { warmup: Duration::from_secs(1), measured: Duration::from_secs(2) };

/// A run with an answer for each of `millis`.
fn run(source: usize, callers: usize, round: usize, millis: &[u64]) -> Run {
    let start = Instant::now();
    let mut recorder = Recorder::new(start + LENGTHS.measured);
    for millis in millis {
        recorder.record(start, start + Duration::from_millis(*millis), Ok(None));
    }
    let asked = Asked { name: ["first", "second"][source], source, callers, round, rows: 4 };
    Run::new(asked, &recorder, None, LENGTHS.measured)
}

fn report(runs: Vec<Run>) -> Report {
    let sources = ["first", "second"].map(|name| (name.to_owned(), "y FP32 [1, 3]".to_owned())).to_vec();
    Report { model: "m".into(), pace: Pace::Closed, lengths: LENGTHS, sources, runs }
}

#[test]
fn times_have_three_digits_and_a_unit() {
    let texts = [0.5, 9.994, 54.0, 99.96, 999.4, 999.6, 1234.0, 45_670.0, 999_600.0, 2_500_000.0].map(time);
    let wanted =
        ["0.50 µs", "9.99 µs", "54.0 µs", "100 µs", "999 µs", "1.00 ms", "1.23 ms", "45.7 ms", "1.00 s", "2.50 s"];
    assert_eq!(texts, wanted);
}

#[test]
fn large_numbers_have_thousands_apart() {
    assert_eq!(
        [0.25, 99.94, 100.0, 1234.5, 123_456.7, 1e6].map(thousands),
        ["0.2", "99.9", "100", "1,234", "123,457", "1,000,000"]
    );
}

#[test]
fn a_median_is_the_middle_of_any_order() {
    assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    assert_eq!(median(Vec::new()), None);
}

#[test]
fn quantiles_are_of_the_latencies() {
    let millis: Vec<_> = (1..=1000).collect();
    let run = run(0, 1, 1, &millis);
    let wanted = [500.0, 900.0, 950.0, 990.0, 999.0, 1000.0];
    for (found, wanted) in run.latency.iter().zip(wanted) {
        assert!((found / 1e3 - wanted).abs() <= wanted * 0.001, "{found} µs, and not {wanted} ms");
    }
    assert!((run.rate - 500.0).abs() < 1e-9, "1000 answers in 2 s");
    assert!((run.rows_per_second() - 2000.0).abs() < 1e-9, "of 4 rows each");
}

#[test]
fn ratios_are_those_of_the_medians_of_the_rounds() {
    let runs = vec![
        run(0, 8, 1, &[2; 30]),
        run(1, 8, 1, &[4; 10]),
        run(0, 8, 2, &[200; 1]),
        run(1, 8, 2, &[4; 10]),
        run(0, 8, 3, &[2; 30]),
        run(1, 8, 3, &[4; 20]),
    ];
    let comparisons = report(runs).comparisons();
    assert_eq!((comparisons.len(), comparisons[0].callers), (1, 8));
    assert!((comparisons[0].rate - 3.0).abs() < 1e-9, "{comparisons:?}");
    assert!((comparisons[0].p50 - 0.5).abs() < 0.001, "{comparisons:?}");
}

#[test]
fn a_source_without_answers_is_compared_with_nothing() {
    let text = report(vec![run(0, 1, 1, &[1]), run(1, 1, 1, &[])]).table();
    assert!(!text.contains("ratio"), "{text}");
}

#[test]
fn a_table_has_a_line_for_each_run() {
    let mut refused = run(1, 64, 1, &[1]);
    refused.errors.insert("overloaded".into(), 3);
    refused.unsent = 2;
    let text = report(vec![run(0, 64, 1, &[1, 1]), refused]).table();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("64  ")).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("first ") && lines[0].ends_with("  0"), "{text}");
    assert!(lines[1].ends_with("overloaded 3, unsent 2"), "{text}");
    assert!(text.contains("64 callers: requests/s 2.00, p50 1.00"), "{text}");
    assert!(text.starts_with("m: closed loop, 2s after 1s of warm-up\n"), "{text}");
}

#[test]
fn json_says_the_same() {
    let json: Value = serde_json::from_str(&report(vec![run(0, 8, 1, &[1, 3]), run(1, 8, 1, &[2])]).json()).unwrap();
    let run = &json["runs"][0];
    assert_eq!((&run["source"], &run["callers"], &run["answers"]), (&json!("first"), &json!(8), &json!(2)));
    assert_eq!((&run["requests_per_second"], &run["rows_per_second"]), (&json!(1.0), &json!(4.0)));
    assert!((run["latency_us"]["max"].as_f64().unwrap() - 3000.0).abs() < 3.0, "{run}");
    assert_eq!((&run["queue_us"], &run["errors"]), (&Value::Null, &json!({})));
    assert_eq!(json["ratios"][0]["requests_per_second"], json!(2.0));
    assert_eq!(json["requests_per_second_due"], Value::Null);
}
