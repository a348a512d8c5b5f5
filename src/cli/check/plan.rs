//! `outrigger check --plan`: what would be copied, compared and deleted.

use serde::Serialize;

use crate::{
    agent::{TargetEnd, known_source},
    cli::show,
    config::{Config, units},
    observe::{report::Failure, words},
    sync::{Action, Planned, preview},
};

/// What a comparison of everything would do, by the servers' estimates.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Plan {
    collections: Vec<Planned>,
    /// There is a queue: a start goes on from its position, and compares everything only where that is lost.
    queue_is_there: bool,
}

pub(super) async fn of(config: &Config) -> Result<Plan, Failure> {
    let (filter, ratio) = (config.compared()?, config.sync.max_delete_ratio);
    let (source, known) = known_source(config).await?;
    let target = TargetEnd::connect(config).await?.end().side;
    let id = known.as_deref().unwrap_or(super::NOT_DRAWN);
    let collections = preview(&*source, &*target, &filter, id, ratio).await?;
    Ok(Plan { collections, queue_is_there: config.queue.path.join("db").exists() })
}

impl Plan {
    pub fn print(&self) {
        show::line("");
        if self.collections.is_empty() {
            show::line("plan: nothing is there to be copied, compared or deleted");
            return;
        }
        show::line(
            "plan (estimated; nothing was changed; `outrigger sync --dry-run --wait` compares every byte):",
        );
        let rows: Vec<_> = self.collections.iter().map(row).collect();
        let target = words::target().to_uppercase();
        show::table(&["ACTION", "COLLECTION", "LOCAL", "SIZE", &target, "NOTE"], &rows);
        let of = |action| self.collections.iter().filter(move |planned| planned.action == action);
        let (copied, bytes) = of(Action::Copy)
            .fold((0, 0), |sum, of| (sum.0 + of.local_documents, sum.1 + of.local_bytes));
        show::line(format!(
            "{copied} documents ({}) to copy, {} collections and views to compare, {} to delete in Atlas, {} to leave",
            units::show_bytes(bytes),
            of(Action::Compare).count(),
            of(Action::Delete).count(),
            of(Action::Leave).count(),
        ));
        if self.queue_is_there {
            show::line(
                "there is a queue: a start goes on from its position, and does this only when that is lost, or for `outrigger sync`",
            );
        }
    }
}

fn row(planned: &Planned) -> Vec<String> {
    let action = match planned.action {
        Action::Copy => "copy",
        Action::Compare => "compare",
        Action::Delete => "delete",
        Action::Leave => "leave",
    };
    vec![
        action.to_owned(),
        planned.ns.to_string(),
        planned.local_documents.to_string(),
        units::show_bytes(planned.local_bytes),
        planned.atlas_documents.to_string(),
        planned.note.clone().unwrap_or_default(),
    ]
}
