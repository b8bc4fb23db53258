//! Repository, statistics, trace and log messages (contract 02 sections 5, 6, 11 and 13).

use super::{given, inference as pb};
use crate::{
    call::{
        BatchReport, IndexEntry, LoadRequest, Logging, LoggingChange, ModelRef, NewValues, StatisticsReport, Tally,
        TraceChange, UnloadRequest, VersionState,
    },
    error::Error,
    wire::reserved,
};
use pb::{
    ModelRepositoryParameter, log_settings_request::setting_value::ParameterChoice as LogValue,
    model_repository_parameter::ParameterChoice,
};
use std::{collections::HashMap, sync::Arc};

/// Why a repository that is named is not found.
const ONE_REPOSITORY: &str = "there is one repository here, and it has no name: leave it out";

/// Converts a load.
///
/// # Errors
///
/// [`Error::InvalidRequest`], here and below, with what was found and what was expected, or as [`check_repository`].
pub fn decode_load(message: pb::RepositoryModelLoadRequest) -> Result<LoadRequest, Error> {
    let model = model(message.model_name, message.repository_name)?;
    let mut request = LoadRequest { model, config: None, files: Vec::new() };
    for (name, value) in message.parameters {
        match (&*name, name.strip_prefix(reserved::FILE), value.parameter_choice) {
            ("config", _, Some(ParameterChoice::StringParam(config))) => request.config = Some(config.into()),
            (reserved::VERSION, _, Some(ParameterChoice::StringParam(version))) => {
                request.model.version = given(version);
            }
            (_, Some(path), Some(ParameterChoice::BytesParam(data))) => request.files.push((path.into(), data)),
            ("config" | reserved::VERSION, _, _) => return Err(wrong(&name, "a string")),
            (_, Some(_), _) => return Err(wrong(&name, "bytes")),
            (_, None, _) => return Err(reserved::unknown_load_parameter(&name)),
        }
    }
    // The order of a map is nobody's.
    request.files.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(request)
}

/// Converts an unload.
///
/// # Errors
///
/// As [`decode_load`].
pub fn decode_unload(message: pb::RepositoryModelUnloadRequest) -> Result<UnloadRequest, Error> {
    let model = model(message.model_name, message.repository_name)?;
    let mut request = UnloadRequest { model, dependents: false };
    for (name, ModelRepositoryParameter { parameter_choice: value }) in message.parameters {
        match (&*name, value) {
            ("unload_dependents", Some(ParameterChoice::BoolParam(all))) => request.dependents = all,
            ("unload_dependents", _) => return Err(wrong(&name, "`true` or `false`")),
            (reserved::VERSION, Some(ParameterChoice::StringParam(version))) => request.model.version = given(version),
            (reserved::VERSION, _) => return Err(wrong(&name, "a string")),
            _ => return Err(reserved::unknown_unload_parameter(&name)),
        }
    }
    Ok(request)
}

/// There is one repository, and it has no name, whatever surface a call names one on.
///
/// # Errors
///
/// [`Error::Unimplemented`] for any name.
pub fn check_repository(name: &str) -> Result<(), Error> {
    if name.is_empty() { Ok(()) } else { Err(Error::Unimplemented(ONE_REPOSITORY.into())) }
}

/// KServe's messages have the model's name where Triton's have the repository's (contract 02 section 5).
fn model(model: String, repository: String) -> Result<ModelRef, Error> {
    if !model.is_empty() {
        check_repository(&repository)?;
    }
    let name = given(model).or_else(|| given(repository)).ok_or_else(|| Error::invalid("`model_name` is empty"))?;
    Ok(ModelRef { name, version: None })
}

#[cold]
fn wrong(name: &str, expected: &str) -> Error {
    Error::invalid(format!("parameter `{}` has another type, expected {expected}", reserved::shown(name)))
}

/// Converts new trace settings; `None` if there are none, which makes the call a question.
pub fn decode_trace(message: pb::TraceSettingRequest) -> (Option<ModelRef>, Option<TraceChange>) {
    let model = given(message.model_name).map(|name| ModelRef { name, version: None });
    if message.settings.is_empty() {
        return (model, None);
    }
    let mut settings: Vec<(Arc<str>, NewValues)> = message
        .settings
        .into_iter()
        .map(|(name, value)| {
            let values: Vec<Arc<str>> = value.value.into_iter().map(Into::into).collect();
            // Without values a setting goes back to the server's.
            (name.into(), (!values.is_empty()).then_some(values))
        })
        .collect();
    settings.sort_by(|a, b| a.0.cmp(&b.0));
    (model.clone(), Some(TraceChange { model, settings }))
}

/// Converts what is to be logged; `None` if nothing is to change, which makes the call a question.
///
/// # Errors
///
/// As [`decode_load`]; also for a setting that is unknown, or `log_file`, which no call may change.
pub fn decode_logging(message: pb::LogSettingsRequest) -> Result<Option<LoggingChange>, Error> {
    if message.settings.is_empty() {
        return Ok(None);
    }
    let mut change = LoggingChange::default();
    for (name, value) in message.settings {
        match (&*name, value.parameter_choice) {
            ("log_info", Some(LogValue::BoolParam(flag))) => change.info = Some(flag),
            ("log_warning", Some(LogValue::BoolParam(flag))) => change.warning = Some(flag),
            ("log_error", Some(LogValue::BoolParam(flag))) => change.error = Some(flag),
            ("log_verbose_level", Some(LogValue::Uint32Param(level))) => change.verbose = Some(level),
            ("log_format", Some(LogValue::StringParam(format))) => change.format = Some(format.into()),
            ("log_info" | "log_warning" | "log_error", _) => return Err(wrong(&name, "`true` or `false`")),
            ("log_verbose_level", _) => return Err(wrong(&name, "an integer from 0 on")),
            ("log_format", _) => return Err(wrong(&name, "a string")),
            _ => return Err(reserved::unknown_log_setting(&name)),
        }
    }
    Ok(Some(change))
}

/// Converts the repository's index.
pub fn encode_index(entries: &[IndexEntry]) -> pb::RepositoryIndexResponse {
    let models = entries.iter().map(|entry| pb::repository_index_response::ModelIndex {
        name: entry.name.as_ref().into(),
        version: entry.version.as_deref().unwrap_or_default().into(),
        state: entry.state.map_or_else(String::new, |state| index_state(state).into()),
        reason: entry.reason.as_ref().into(),
    });
    pb::RepositoryIndexResponse { models: models.collect() }
}

/// Triton's word for a state.
pub(in crate::wire) const fn index_state(state: VersionState) -> &'static str {
    match state {
        VersionState::Loading => "LOADING",
        VersionState::Ready => "READY",
        VersionState::Unloading => "UNLOADING",
        VersionState::Failed | VersionState::Unloaded => "UNAVAILABLE",
    }
}

/// Converts statistics; every key is always there (contract 02 section 6).
pub fn encode_statistics(reports: &[StatisticsReport]) -> pb::ModelStatisticsResponse {
    pb::ModelStatisticsResponse { model_stats: reports.iter().map(statistics).collect() }
}

fn statistics(report: &StatisticsReport) -> pb::ModelStatistics {
    pb::ModelStatistics {
        name: report.name.as_ref().into(),
        version: report.version.as_ref().into(),
        last_inference: report.last_inference,
        inference_count: report.inferences,
        execution_count: report.executions,
        inference_stats: Some(pb::InferStatistics {
            success: duration(report.success),
            fail: duration(report.fail),
            queue: duration(report.queue),
            compute_input: duration(report.compute_input),
            compute_infer: duration(report.compute_infer),
            compute_output: duration(report.compute_output),
            cache_hit: duration(report.cache_hit),
            cache_miss: duration(report.cache_miss),
        }),
        batch_stats: report.batches.iter().map(batch).collect(),
        memory_usage: Vec::new(),
        response_stats: HashMap::new(),
    }
}

fn batch(batch: &BatchReport) -> pb::InferBatchStatistics {
    pb::InferBatchStatistics {
        batch_size: batch.rows,
        compute_input: duration(batch.compute_input),
        compute_infer: duration(batch.compute_infer),
        compute_output: duration(batch.compute_output),
    }
}

fn duration(tally: Tally) -> Option<pb::StatisticDuration> {
    Some(pb::StatisticDuration { count: tally.count, ns: tally.nanos })
}

/// Converts trace settings.
pub fn encode_trace(settings: &[(Arc<str>, Vec<Arc<str>>)]) -> pb::TraceSettingResponse {
    let value = |values: &Vec<Arc<str>>| pb::trace_setting_response::SettingValue {
        value: values.iter().map(|value| value.as_ref().into()).collect(),
    };
    let settings = settings.iter().map(|(name, values)| (name.as_ref().into(), value(values)));
    pb::TraceSettingResponse { settings: settings.collect() }
}

/// Converts what is logged.
pub fn encode_logging(logging: &Logging) -> pb::LogSettingsResponse {
    use pb::log_settings_response::{SettingValue, setting_value::ParameterChoice};
    let settings = [
        ("log_file", ParameterChoice::StringParam(String::new())),
        ("log_info", ParameterChoice::BoolParam(logging.info)),
        ("log_warning", ParameterChoice::BoolParam(logging.warning)),
        ("log_error", ParameterChoice::BoolParam(logging.error)),
        ("log_verbose_level", ParameterChoice::Uint32Param(logging.verbose)),
        ("log_format", ParameterChoice::StringParam(logging.format.as_ref().into())),
    ];
    let settings = settings.map(|(name, value)| (name.into(), SettingValue { parameter_choice: Some(value) }));
    pb::LogSettingsResponse { settings: settings.into() }
}
