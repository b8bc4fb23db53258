//! `ensemble_scheduling`: the graph of an ensemble, as Triton writes it.

use super::{Reader, Word, shown};
use crate::{
    config::raw::{
        Version,
        ensemble::{Ensemble, Named, Step, Tensor},
    },
    tensor::TensorSpec,
    wire::proto::inference::{ModelEnsembling, model_config::SchedulingChoice},
};
use std::collections::{BTreeMap, HashMap};

impl Reader<'_> {
    /// Whether the model is made of others.
    pub(super) fn is_ensemble(&self) -> bool {
        matches!(self.config.scheduling_choice, Some(SchedulingChoice::EnsembleScheduling(_)))
    }

    /// To be read after the tensors: Triton wants all inputs and outputs of an ensemble to be written down.
    pub(super) fn ensemble(&mut self) {
        let Some(SchedulingChoice::EnsembleScheduling(ModelEnsembling { step, .. })) = &self.config.scheduling_choice
        else {
            return;
        };
        let named = |map: &HashMap<String, String>| map.clone().into_iter().collect::<BTreeMap<_, _>>();
        let mut steps = Vec::with_capacity(step.len());
        for (at, step) in step.iter().enumerate() {
            if !step.model_namespace.is_empty() {
                let text = format!("is `{}`, and models have no namespaces here", shown(&step.model_namespace));
                self.problem(format!("ensemble_scheduling.step[{at}].model_namespace"), text);
            }
            // -1 is what Triton writes for none.
            let version = u64::try_from(step.model_version).ok().filter(|version| *version > 0);
            steps.push(Step {
                model: step.model_name.clone(),
                version: version.map(|version| Named::Version(Version(version))),
                inputs: named(&step.input_map),
                outputs: named(&step.output_map),
                parameters: None,
            });
        }
        let tensor = |spec: &TensorSpec| {
            let shape = (!spec.dims.is_empty()).then(|| spec.wire_dims().collect());
            let datatype = spec.dtype.map(|dtype| dtype.name().to_owned());
            (spec.name.to_string(), Tensor { datatype, shape })
        };
        let declared = self.said.declared.clone().unwrap_or_default();
        let list = |specs: &[TensorSpec]| (!specs.is_empty()).then(|| specs.iter().map(tensor).collect());
        let (inputs, outputs) = (list(&declared.inputs), list(&declared.outputs));
        let ensemble = Ensemble { steps, inputs, outputs, ..Ensemble::default() };
        self.said.ensemble = Some(Word::new(ensemble, "ensemble_scheduling"));
    }
}
