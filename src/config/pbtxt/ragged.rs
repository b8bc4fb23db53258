//! `allow_ragged_batch`, `batch_input` and `batch_output`: rows of different lengths one behind the other.

use super::{Reader, Word, shown};
use crate::{
    config::raw::Ragged,
    tensor::{DataType, Marks, TensorSpec},
    wire::proto::{
        decode_data_type,
        inference::{batch_input::Kind, batch_output::Kind as OutputKind},
    },
};
use std::collections::BTreeMap;

impl Reader<'_> {
    pub(super) fn ragged(&mut self) {
        let config = self.config;
        let mut found = BTreeMap::new();
        for (at, input) in config.input.iter().enumerate().filter(|(_, input)| input.allow_ragged_batch) {
            if config.max_batch_size == Some(0) {
                let text = "is true, and `max_batch_size` is 0: nothing runs together";
                self.problem(format!("input[{at}].allow_ragged_batch"), text);
            }
            found.insert(input.name.as_str(), Ragged::default());
        }
        for (at, input) in config.batch_input.iter().enumerate() {
            let path = format!("batch_input[{at}]");
            let Some((target, ragged)) = self.ends(&path, &input.target_name, &input.source_input, &mut found) else {
                continue;
            };
            let dtype = decode_data_type(input.data_type);
            if dtype.is_none_or(|dtype| Marks::most(dtype) == 0) {
                let types: Vec<_> = Marks::TYPES.iter().map(|(dtype, _)| dtype.name()).collect();
                let name = dtype.map_or("no type", DataType::name);
                self.problem(format!("{path}.data_type"), format!("is {name}, expected {}", types.join(" or ")));
            }
            let made = match Kind::try_from(input.kind) {
                Ok(Kind::BatchElementCount) => &mut ragged.counts,
                Ok(Kind::BatchAccumulatedElementCount) => &mut ragged.ends,
                Ok(Kind::BatchAccumulatedElementCountWithZero) => &mut ragged.bounds,
                Ok(kind) => {
                    let text = format!("is {}, which is not made here: the model would miss it", kind.as_str_name());
                    self.problem(format!("{path}.kind"), text);
                    continue;
                }
                Err(_) => {
                    self.problem(format!("{path}.kind"), format!("is {}, which is no kind", input.kind));
                    continue;
                }
            };
            if made.replace(target.to_owned()).is_some() {
                self.problem(path, "says the same of the same input as one before it");
            }
            self.declare(target, dtype);
        }
        for (at, output) in config.batch_output.iter().enumerate() {
            let path = format!("batch_output[{at}]");
            if OutputKind::try_from(output.kind).is_err() {
                self.problem(format!("{path}.kind"), format!("is {}, which is no kind", output.kind));
            }
            if let Some((target, ragged)) = self.ends(&path, &output.target_name, &output.source_input, &mut found) {
                ragged.outputs.push(target.to_owned());
            }
        }
        let word = |(name, ragged): (&str, Ragged)| (name.to_owned(), Word::new(ragged, "allow_ragged_batch: true"));
        self.said.ragged = found.into_iter().map(word).collect();
    }

    /// The one target, and what is known of the one source, which must be ragged.
    fn ends<'a, 'b>(
        &mut self,
        path: &str,
        targets: &'a [String],
        sources: &[String],
        found: &'b mut BTreeMap<&str, Ragged>,
    ) -> Option<(&'a str, &'b mut Ragged)> {
        let ([target], [source]) = (targets, sources) else {
            let text =
                format!("has {} target_name and {} source_input, expected one of each", targets.len(), sources.len());
            self.problem(path, text);
            return None;
        };
        let ragged = found.get_mut(source.as_str());
        if ragged.is_none() {
            let text = format!("`{}` is no input with `allow_ragged_batch: true`", shown(source));
            self.problem(format!("{path}.source_input"), text);
        }
        Some((target, ragged?))
    }

    /// Has the type of an input that no call sends held against the model.
    fn declare(&mut self, name: &str, dtype: Option<DataType>) {
        let inputs = &mut self.said.declared.get_or_insert_default().inputs;
        if !inputs.iter().any(|spec| *spec.name == *name) {
            inputs.push(TensorSpec { name: name.into(), dtype, dims: Vec::new() });
        }
    }
}
