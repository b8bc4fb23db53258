//! The repository, statistics and settings as JSON (contract 02 sections 5, 6 and 11).

use super::response::{write_integer, write_list, write_string};
use crate::{
    call::{BatchReport, IndexEntry, Logging, StatisticsReport, Tally},
    wire::proto::index_state,
};
use std::sync::Arc;

/// Appends the index: an array, and not an object as everywhere else.
pub(super) fn write_index(out: &mut Vec<u8>, entries: &[IndexEntry]) {
    write_list(out, entries, |out, entry| {
        out.extend_from_slice(b"{\"name\":");
        write_string(out, &entry.name);
        if let Some(version) = &entry.version {
            out.extend_from_slice(b",\"version\":");
            write_string(out, version);
        }
        if let Some(state) = entry.state {
            out.extend_from_slice(b",\"state\":");
            write_string(out, index_state(state));
        }
        if !entry.reason.is_empty() {
            out.extend_from_slice(b",\"reason\":");
            write_string(out, &entry.reason);
        }
        out.push(b'}');
    });
}

/// Appends statistics. perf_analyzer reads every key without asking whether it is there.
pub(super) fn write_statistics(out: &mut Vec<u8>, reports: &[StatisticsReport]) {
    out.extend_from_slice(b"{\"model_stats\":");
    write_list(out, reports, |out, report| {
        out.extend_from_slice(b"{\"name\":");
        write_string(out, &report.name);
        out.extend_from_slice(b",\"version\":");
        write_string(out, &report.version);
        for (name, number) in [
            ("last_inference", report.last_inference),
            ("inference_count", report.inferences),
            ("execution_count", report.executions),
        ] {
            write_name(out, name);
            write_integer(out, number);
        }
        out.extend_from_slice(b",\"inference_stats\":{");
        write_tallies(
            out,
            &[
                ("success", report.success),
                ("fail", report.fail),
                ("queue", report.queue),
                ("compute_input", report.compute_input),
                ("compute_infer", report.compute_infer),
                ("compute_output", report.compute_output),
                ("cache_hit", report.cache_hit),
                ("cache_miss", report.cache_miss),
            ],
        );
        out.extend_from_slice(b"},\"response_stats\":{},\"batch_stats\":");
        write_list(out, &report.batches, write_batch);
        out.extend_from_slice(b",\"memory_usage\":[]}");
    });
    out.push(b'}');
}

fn write_batch(out: &mut Vec<u8>, batch: &BatchReport) {
    out.extend_from_slice(b"{\"batch_size\":");
    write_integer(out, batch.rows);
    out.push(b',');
    write_tallies(
        out,
        &[
            ("compute_input", batch.compute_input),
            ("compute_infer", batch.compute_infer),
            ("compute_output", batch.compute_output),
        ],
    );
    out.push(b'}');
}

fn write_tallies(out: &mut Vec<u8>, tallies: &[(&str, Tally)]) {
    for (place, (name, tally)) in tallies.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        write_string(out, name);
        out.extend_from_slice(b":{\"count\":");
        write_integer(out, tally.count);
        out.extend_from_slice(b",\"ns\":");
        write_integer(out, tally.nanos);
        out.push(b'}');
    }
}

/// Appends trace settings: lists where Triton has lists, text elsewhere.
pub(super) fn write_trace(out: &mut Vec<u8>, settings: &[(Arc<str>, Vec<Arc<str>>)]) {
    out.push(b'{');
    for (place, (name, values)) in settings.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        write_string(out, name);
        out.push(b':');
        match values.as_slice() {
            [value] if &**name != "trace_level" => write_string(out, value),
            values => write_list(out, values, |out, value| write_string(out, value)),
        }
    }
    out.push(b'}');
}

/// Appends what is logged.
pub(super) fn write_logging(out: &mut Vec<u8>, logging: &Logging) {
    out.extend_from_slice(b"{\"log_file\":\"\"");
    for (name, flag) in [("log_info", logging.info), ("log_warning", logging.warning), ("log_error", logging.error)] {
        write_name(out, name);
        out.extend_from_slice(if flag { b"true" } else { b"false" });
    }
    write_name(out, "log_verbose_level");
    write_integer(out, logging.verbose);
    write_name(out, "log_format");
    write_string(out, &logging.format);
    out.push(b'}');
}

fn write_name(out: &mut Vec<u8>, name: &str) {
    out.push(b',');
    write_string(out, name);
    out.push(b':');
}

#[cfg(test)]
mod tests {
    use crate::{
        call::{BatchReport, IndexEntry, Logging, Report, StatisticsReport, Tally, VersionState},
        wire::json::encode_report,
    };

    fn json(report: &Report) -> serde_json::Value {
        serde_json::from_slice(&encode_report(report)).unwrap()
    }

    #[test]
    fn an_index_leaves_out_what_there_is_not() {
        let entry = |version: Option<&str>, state, reason: &str| IndexEntry {
            name: "m".into(),
            version: version.map(Into::into),
            state,
            labels: Vec::new(),
            reason: reason.into(),
        };
        let index = Report::Index(vec![
            entry(Some("1"), Some(VersionState::Ready), ""),
            entry(Some("2"), Some(VersionState::Failed), "not served"),
            entry(None, Some(VersionState::Failed), "no model"),
            entry(None, None, ""),
        ]);
        let expected = serde_json::json!([
            { "name": "m", "version": "1", "state": "READY" },
            { "name": "m", "version": "2", "state": "UNAVAILABLE", "reason": "not served" },
            { "name": "m", "state": "UNAVAILABLE", "reason": "no model" },
            { "name": "m" },
        ]);
        assert_eq!(json(&index), expected);
    }

    #[test]
    fn every_key_of_the_statistics_is_there_from_the_first_second() {
        let report = StatisticsReport { name: "m".into(), version: "1".into(), ..StatisticsReport::default() };
        let stats = &json(&Report::Statistics(vec![report]))["model_stats"][0];
        for name in ["inference_count", "execution_count", "last_inference"] {
            assert_eq!(stats[name], 0, "{name}");
        }
        let names = ["success", "fail", "queue", "compute_input", "compute_infer", "compute_output"];
        for name in names.into_iter().chain(["cache_hit", "cache_miss"]) {
            assert_eq!(stats["inference_stats"][name], serde_json::json!({ "count": 0, "ns": 0 }), "{name}");
        }
        assert_eq!(stats["batch_stats"], serde_json::json!([]));
        assert_eq!(stats["memory_usage"], serde_json::json!([]));
        assert_eq!(stats["response_stats"], serde_json::json!({}));
    }

    #[test]
    fn batches_stand_by_their_size() {
        let batch = BatchReport { rows: 4, compute_infer: Tally { count: 2, nanos: 9 }, ..BatchReport::default() };
        let report = StatisticsReport { batches: vec![batch], ..StatisticsReport::default() };
        let stats = &json(&Report::Statistics(vec![report]))["model_stats"][0]["batch_stats"][0];
        assert_eq!(stats["batch_size"], 4);
        assert_eq!(stats["compute_infer"], serde_json::json!({ "count": 2, "ns": 9 }));
    }

    #[test]
    fn settings_are_written_as_triton_writes_them() {
        let expected = serde_json::json!({ "log_file": "", "log_info": true, "log_warning": true, "log_error": true,
            "log_verbose_level": 0, "log_format": "default" });
        assert_eq!(json(&Report::Logging(Logging::default())), expected);
        let trace = vec![("trace_level".into(), vec!["OFF".into()]), ("trace_rate".into(), vec!["1000".into()])];
        assert_eq!(json(&Report::Trace(trace)), serde_json::json!({ "trace_level": ["OFF"], "trace_rate": "1000" }));
    }
}
