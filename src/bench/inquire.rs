//! What a server says of a model: its inputs, and what it has done so far.

use super::{
    client::{
        Failure, Kept,
        grpc::{self, Unary},
        http1,
    },
    source::Server,
};
use crate::{
    call::StatisticsReport,
    tensor::{DataType, Signature, TensorSpec},
    wire::proto::inference::{
        ModelMetadataRequest, ModelMetadataResponse, ModelStatisticsRequest, ModelStatisticsResponse,
        StatisticDuration, model_metadata_response::TensorMetadata,
    },
};
use prost::Message;
use serde::Deserialize;
use std::time::Duration;

/// What a model has done: sums since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    queue: Sum,
    run: Sum,
    /// Runs, each of a batch.
    runs: u64,
}

/// So many durations, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
struct Sum {
    count: u64,
    ns: u64,
}

/// What a server did between two tallies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stages {
    /// The mean time from submission to the run.
    pub(super) queue: Duration,
    /// The mean time of the run that a request was part of.
    pub(super) run: Duration,
    /// The mean number of requests of a run.
    pub(super) requests_per_run: f64,
}

#[derive(Deserialize)]
struct Metadata {
    inputs: Vec<Tensor>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    datatype: String,
    shape: Vec<i64>,
}

#[derive(Deserialize)]
struct Statistics {
    model_stats: Vec<ModelStatistics>,
}

#[derive(Deserialize)]
struct ModelStatistics {
    execution_count: u64,
    inference_stats: InferStatistics,
}

#[derive(Deserialize)]
struct InferStatistics {
    queue: Sum,
    compute_infer: Sum,
}

// === impl Tally ===

impl Tally {
    /// What was done since `before`; nothing if no request ran, or the model was loaded anew.
    pub(super) fn since(self, before: Self) -> Option<Stages> {
        let runs = self.runs.checked_sub(before.runs).filter(|runs| *runs > 0)?;
        let requests = self.queue.count.checked_sub(before.queue.count)?;
        Some(Stages {
            queue: self.queue.mean_since(before.queue)?,
            run: self.run.mean_since(before.run)?,
            requests_per_run: requests as f64 / runs as f64,
        })
    }

    fn add(&mut self, queue: Sum, run: Sum, runs: u64) {
        self.queue = self.queue.plus(queue);
        self.run = self.run.plus(run);
        self.runs += runs;
    }
}

impl From<&StatisticsReport> for Tally {
    fn from(report: &StatisticsReport) -> Self {
        let sum = |tally: crate::call::Tally| Sum { count: tally.count, ns: tally.nanos };
        Self { queue: sum(report.queue), run: sum(report.compute_infer), runs: report.executions }
    }
}

impl Sum {
    fn plus(self, other: Self) -> Self {
        Self { count: self.count + other.count, ns: self.ns + other.ns }
    }

    fn mean_since(self, before: Self) -> Option<Duration> {
        let ns = self.ns.checked_sub(before.ns)?;
        ns.checked_div(self.count.checked_sub(before.count)?).map(Duration::from_nanos)
    }
}

/// The inputs of the model, over gRPC or over REST. Outputs are not asked for.
///
/// # Errors
///
/// In plain words: nobody answers, the model is unknown, or what comes is no metadata.
pub(super) async fn signature(server: &Server, grpc: bool) -> Result<Signature, String> {
    let inputs = if grpc {
        let request = ModelMetadataRequest { name: name(server), version: version(server) };
        let answer: ModelMetadataResponse = call(server, "ModelMetadata", &request).await?;
        let tensor = |TensorMetadata { name, datatype, shape }| Tensor { name, datatype, shape };
        answer.inputs.into_iter().map(tensor).collect()
    } else {
        let body = get(server, &server.path("")).await?;
        let metadata: Metadata = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        metadata.inputs
    };
    let spec = |tensor: Tensor| TensorSpec {
        name: tensor.name.into(),
        dtype: DataType::parse(&tensor.datatype),
        dims: tensor.shape.into_iter().map(|dim| usize::try_from(dim).ok()).collect(),
    };
    Ok(Signature { inputs: inputs.into_iter().map(spec).collect(), outputs: Vec::new() })
}

/// What the model has done so far; nothing where the server does not tell, or not to this caller.
pub(super) async fn tally(server: &Server, grpc: bool) -> Option<Tally> {
    let mut tally = Tally::default();
    if grpc {
        let request = ModelStatisticsRequest { name: name(server), version: version(server) };
        let answer: ModelStatisticsResponse = call(server, "ModelStatistics", &request).await.ok()?;
        for model in answer.model_stats {
            let stats = model.inference_stats?;
            let sum = |duration: StatisticDuration| Sum { count: duration.count, ns: duration.ns };
            let (queue, run) = (sum(stats.queue?), sum(stats.compute_infer?));
            tally.add(queue, run, model.execution_count);
        }
    } else {
        let body = get(server, &server.path("/stats")).await.ok()?;
        let statistics: Statistics = serde_json::from_slice(&body).ok()?;
        for model in statistics.model_stats {
            let stats = model.inference_stats;
            tally.add(stats.queue, stats.compute_infer, model.execution_count);
        }
    }
    Some(tally)
}

fn name(server: &Server) -> String {
    server.model.name.to_string()
}

fn version(server: &Server) -> String {
    server.model.version.as_deref().unwrap_or_default().to_owned()
}

async fn get(server: &Server, path: &str) -> Result<Vec<u8>, String> {
    let request = server.head("GET", path) + "\r\n";
    let mut connection = http1::Connection::open(&server.address).await.map_err(|failure| failure.to_string())?;
    let answer = connection.exchange(request.as_bytes()).await.map_err(|failure| failure.to_string())?;
    let body = connection.body(&answer);
    match answer.status {
        200 => Ok(body.to_vec()),
        status => Err(Failure::Refused(http1::refusal(status, body)).to_string()),
    }
}

async fn call<M: Message + Default>(server: &Server, method: &str, request: &impl Message) -> Result<M, String> {
    let answer = async {
        let connection = grpc::Connection::open(&server.address).await?;
        let mut kept = Kept::default();
        Unary::new(&connection, server, method, request)?.exchange(Some(&mut kept)).await?;
        Ok(kept.body)
    };
    let body = answer.await.map_err(|failure: Failure| failure.to_string())?;
    M::decode(&*body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(requests: u64, queue: u64, run: u64, runs: u64) -> Tally {
        let sum = |ns| Sum { count: requests, ns };
        Tally { queue: sum(queue), run: sum(run), runs }
    }

    #[test]
    fn stages_are_the_means_between_two_tallies() {
        let stages = tally(110, 60_000, 520_000, 15).since(tally(10, 10_000, 20_000, 5)).unwrap();
        assert_eq!((stages.queue, stages.run), (Duration::from_nanos(500), Duration::from_nanos(5000)));
        assert!((stages.requests_per_run - 10.0).abs() < 1e-9);
        let some = tally(10, 1, 1, 5);
        assert_eq!(some.since(some), None, "nothing ran");
        assert_eq!(tally(1, 1, 1, 6).since(tally(9, 9, 9, 5)), None, "it was loaded anew");
    }
}
