//! `model_warmup`: what a model is run on before it is ready.

use super::{Reader, shown};
use crate::{
    model::{Fill, Sample, SampleInput},
    wire::proto::{
        decode_data_type,
        inference::{
            ModelWarmup,
            model_warmup::{Input, input::InputDataType},
        },
    },
};
use std::collections::BTreeMap;

/// Most samples of a model, and most runs of one on each instance: nobody can use a model that is still warming up.
const SAMPLES: usize = 64;
const RUNS: usize = 1000;

impl Reader<'_> {
    pub(super) fn samples(&mut self) {
        let found = &self.config.model_warmup;
        if found.len() > SAMPLES {
            self.problem("model_warmup", format!("has {} samples, expected at most {SAMPLES}", found.len()));
        }
        for (at, warmup) in found.iter().take(SAMPLES).enumerate() {
            let path = format!("model_warmup[{at}]");
            let name = if warmup.name.is_empty() { at.to_string() } else { shown(&warmup.name).to_owned() };
            let rows = self.rows(&path, warmup);
            let runs = usize::try_from(warmup.count).unwrap_or(usize::MAX).max(1);
            if runs > RUNS {
                self.problem(format!("{path}.count"), format!("is {runs}, expected at most {RUNS}"));
            }
            // The order of a map is nobody's, and samples are the same each time.
            let sorted: BTreeMap<_, _> = warmup.inputs.iter().collect();
            let inputs = sorted.into_iter().filter_map(|(input, said)| {
                self.sample_input(&format!("{path}.inputs[`{}`]", shown(input)), input, said, rows)
            });
            let inputs = inputs.collect();
            self.said.samples.push(Sample { name: name.into(), inputs, outputs: Vec::new(), runs });
        }
    }

    /// Rows of a sample; `None` where the file leaves no dimension out.
    fn rows(&mut self, path: &str, warmup: &ModelWarmup) -> Option<usize> {
        let path = format!("{path}.batch_size");
        // Unset counts as one, as for Triton.
        let rows = usize::try_from(warmup.batch_size).unwrap_or(usize::MAX).max(1);
        if !self.counts_rows() {
            if rows > 1 {
                self.problem(path, format!("is {rows}, expected 1: there is no `max_batch_size` above 0"));
            }
            return None;
        }
        let most = usize::try_from(self.config.max_batch_size.unwrap_or_default()).unwrap_or(usize::MAX);
        if rows > most {
            self.problem(path, format!("is {rows}, which is above `max_batch_size: {most}`"));
        }
        Some(rows.min(most))
    }

    fn sample_input(&mut self, path: &str, name: &str, said: &Input, rows: Option<usize>) -> Option<SampleInput> {
        let dims = said.dims.iter().map(|dim| usize::try_from(*dim).ok()).collect::<Option<Vec<_>>>();
        let dtype = decode_data_type(said.data_type);
        let fill = match &said.input_data_type {
            Some(InputDataType::ZeroData(_)) => Some(Fill::Zeros),
            Some(InputDataType::RandomData(_)) => Some(Fill::Random),
            Some(InputDataType::InputDataFile(file)) => {
                let text = format!("`{}` is not read, and random values stand in for it", shown(file));
                self.warn(&format!("{path}.input_data_file"), &text);
                Some(Fill::Random)
            }
            None => None,
        };
        if dims.is_none() {
            self.problem(format!("{path}.dims"), "has a number below 0, expected the dimensions of one tensor");
        }
        if dtype.is_none() {
            self.problem(format!("{path}.data_type"), "is missing or no type, expected that of the input");
        }
        if fill.is_none() {
            self.problem(path, "has no data, expected zero_data, random_data or input_data_file");
        }
        let dims = rows.into_iter().chain(dims?).collect();
        Some(SampleInput { name: name.into(), dtype: dtype?, dims, fill: fill?, given: None })
    }
}
