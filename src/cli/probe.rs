//! Status line and liveness check of a running gateway, for the service manager.

use crate::admin::Handles;
use crate::service::{LivenessProbe, Unresponsive};
use crate::setting::grouped;
use std::sync::Arc;
use std::time::Duration;

/// A running gateway under a service manager.
pub(super) struct GatewayProbe(pub Arc<Handles>);

impl LivenessProbe for GatewayProbe {
    fn status(&self) -> String {
        let (mut accepted, mut queued) = (0, 0);
        for lane in self.0.journal.lanes().iter().map(|lane| lane.status()) {
            accepted += lane.accepted;
            queued += lane.destinations.iter().map(|to| to.queued).max().unwrap_or(0);
        }
        let mut line = format!("{} events accepted, {} queued", grouped(accepted), grouped(queued));
        let view = self.0.view.load();
        let mut names: Vec<_> = view.links.iter().map(|link| &link.destination).collect();
        names.dedup();
        for name in names {
            let links = || view.links.iter().filter(|link| link.destination == *name);
            let states: Vec<_> = links().map(|link| link.stats.state()).collect();
            line.push_str(&format!("; {name} "));
            match states.iter().find(|state| !state.is_up) {
                None => line.push_str("up"),
                Some(down) => {
                    line.push_str("down: ");
                    line.push_str(down.reason.as_deref().unwrap_or("not connected yet"));
                }
            }
        }
        if view.links.is_empty() {
            line.push_str("; no destination is configured");
        }
        line
    }

    fn check(&self, work_max: Duration) -> Result<(), Unresponsive> {
        self.0.journal.check(work_max)?;
        self.0.failures.hung_part().map_or(Ok(()), |part| Err(Unresponsive::Dead { part }))
    }
}
