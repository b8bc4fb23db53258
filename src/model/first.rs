//! The first instance of a model: opened, checked and measured, in a process of its own before it is here.

use super::{
    decision::may_batch,
    declared, labels,
    measure::{Measured, measure, measure_ragged},
    samples,
    scan::Found,
    shapes::{self, Shapes},
    workshop::{First, Workshop, fill_up},
};
use crate::{
    backend::{Backend, SessionSettings},
    schedule::{Cost, TurnSettings},
};
use std::time::{Duration, Instant};

/// What a run in a process of its own may take besides.
const PIPES: Duration = Duration::from_millis(1);

impl Workshop {
    /// Opens a model, checks what is said of it, and measures it; all that is done to it before it is ready is done in a process of
    /// its own first, where files are tried.
    pub(super) fn first(&self, found: &Found, session: SessionSettings) -> Result<First, String> {
        let began = Instant::now();
        let share = self.share(found, session.threads * session.sharers, 1)?;
        self.rehearse(found, &session)?;
        let mut backend = self.open(found, &session)?;
        let (mut shapes, measured) = self.inspect(found, &mut *backend, &self.settings.turn)?;
        for warning in &found.settings.warnings {
            tracing::warn!(model = %found.name, warning, "part of a model's configuration does not apply here");
        }
        let labels = labels::read(&found.settings, &found.folder, backend.signature())?;
        let decision = self.decide(found, &*backend, &shapes, &measured)?;
        if decision.mixed {
            tracing::warn!(model = %found.name, batches = decision.batches, "rows of the model depend on each other");
        }
        if !decision.batches {
            shapes.layout = None;
        }
        let cost = Cost::default();
        measured.costs.iter().for_each(|(rows, took)| cost.seed(*rows, *took));
        Ok(First { backend, session, shapes, labels, decision, share, cost, took: began.elapsed() })
    }

    /// Does to a model in a process of its own, if files are tried, what is going to be done to it here.
    fn rehearse(&self, found: &Found, session: &SessionSettings) -> Result<(), String> {
        self.is_there(found)?;
        let rehearsal = self.opener.rehearse(&found.path, session).map_err(|error| error.to_string())?;
        let Some(mut rehearsal) = rehearsal else { return Ok(()) };
        // It takes longer there, and not less is to be run there.
        let TurnSettings { run, budget, .. } = self.settings.turn;
        let turn = TurnSettings { run: 2 * run + PIPES, budget: 2 * budget + PIPES, ..self.settings.turn };
        let done = self.inspect(found, &mut *rehearsal, &turn).and_then(|(mut shapes, measured)| {
            let decision = self.decide(found, &*rehearsal, &shapes, &measured)?;
            if !decision.batches {
                shapes.layout = None;
            }
            samples::run(&samples::make(&found.settings, &shapes, decision.batches)?, &mut *rehearsal)?;
            fill_up(found, &mut *rehearsal, &mut shapes)
        });
        // What the process died of says more than the run that failed of it.
        rehearsal.ready().map_err(|error| error.to_string())?;
        done
    }

    /// Checks what is said of a model, and measures it.
    fn inspect(
        &self,
        found: &Found,
        backend: &mut dyn Backend,
        turn: &TurnSettings,
    ) -> Result<(Shapes, Measured), String> {
        let settings = &found.settings;
        if backend.signature().outputs.is_empty() {
            return Err("has no outputs, so that no call could be answered".to_owned());
        }
        let shapes = shapes::shapes(settings, backend.signature(), &backend.axis_names())?;
        if let Some(declared) = &settings.declared {
            match shapes.ragged() {
                // It speaks of rows and their lengths, which the model has not, and of inputs that no call sends.
                Some(ragged) => declared::check(declared, &ragged.declared(&shapes.signature, backend.signature()))?,
                None => declared::check(declared, backend.signature())?,
            }
        }
        let fixed = shapes.rows();
        let mut measured = match shapes.ragged() {
            _ if !settings.warmup || backend.is_decoupled() => Measured { max_rows: 1, ..Measured::default() },
            Some(ragged) => {
                let max_rows = settings.batching.max_rows;
                measure_ragged(backend, &shapes.signature, ragged, max_rows, turn)
            }
            None => {
                let free = fixed.is_none() && may_batch(settings, &shapes.signature);
                measure(backend, if free { settings.batching.max_rows } else { 1 }, turn)
            }
        };
        if let Some(rows) = fixed {
            measured.max_rows = rows;
            // A run has its rows whatever comes.
            measured.costs.extend(measured.run.map(|run| (rows, run)));
        }
        Ok((shapes, measured))
    }
}
