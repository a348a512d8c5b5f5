//! An id as a person types it: all of it, or as much of its beginning, or of its end, as no other one has.

use uuid::Uuid;

use super::access::Access;
use crate::{
    admin::LIST_MAX,
    config::Config,
    observe::report::{ExitCode, Failure},
};

/// What the id is of.
#[derive(Clone, Copy, Debug)]
pub enum Of {
    Queue,
    Dead,
    /// The same, where there is a way to name them all.
    DeadToRetry,
}

impl Of {
    fn name(self) -> &'static str {
        match self {
            Of::Queue => "entry of the queue",
            Of::Dead | Of::DeadToRetry => "dead letter",
        }
    }

    fn hint(self) -> &'static str {
        match self {
            Of::Queue => {
                "`outrigger queue list` shows what there is; the beginning or the end of an id is enough"
            }
            Of::Dead => {
                "`outrigger dead list` shows what there is; the beginning or the end of an id is enough"
            }
            Of::DeadToRetry => {
                "`outrigger dead list` shows what there is; the beginning or the end of an id is enough, and `--all` retries all"
            }
        }
    }
}

/// The one that is meant, and where it is to be had.
///
/// # Errors
/// A usage error for what is no id, and for a beginning that several have. As [`Access::open`].
pub fn resolve(config: &Config, of: Of, text: &str) -> Result<(Access, Uuid), Failure> {
    let failure = |exit, text: String| Failure::new(exit, anyhow::anyhow!(text)).hint(of.hint());
    // Known without a look at what there is.
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
        let text = text.escape_debug();
        return Err(failure(ExitCode::Usage, format!("`{text}` is no id of any {}", of.name())));
    }
    let access = Access::open(config)?;
    if let Ok(id) = text.parse() {
        return Ok((access, id));
    }
    match chosen(&all(&access, of)?, text)[..] {
        [id] => Ok((access, id)),
        [] => Err(failure(ExitCode::Problem, format!("no {} has an id like `{text}`", of.name()))),
        ref several => {
            let some: Vec<_> = several.iter().take(3).map(ToString::to_string).collect();
            Err(failure(
                ExitCode::Usage,
                format!(
                    "{} ids begin with `{text}`, or end with it: {}, …",
                    several.len(),
                    some.join(", ")
                ),
            ))
        }
    }
}

/// Those that begin so; where none does, those that end so: they begin with a time, which ids of one moment have in common.
fn chosen(ids: &[Uuid], part: &str) -> Vec<Uuid> {
    let part = part.to_ascii_lowercase();
    let with = |has: fn(&str, &str) -> bool| -> Vec<Uuid> {
        let is = |id: &&Uuid| has(&id.to_string(), &part) || has(&id.simple().to_string(), &part);
        ids.iter().filter(is).copied().collect()
    };
    let begin = with(|id, part| id.starts_with(part));
    if begin.is_empty() { with(|id, part| id.ends_with(part)) } else { begin }
}

fn all(access: &Access, of: Of) -> Result<Vec<Uuid>, Failure> {
    let (path, list) = match of {
        Of::Queue => ("/api/queue", "operations"),
        Of::Dead | Of::DeadToRetry => ("/api/dead-letters", "deadLetters"),
    };
    Ok(match (access, of) {
        (Access::Agent(client), _) => {
            let answer = client.get(&format!("{path}?limit={LIST_MAX}"))?;
            let items = answer[list].as_array().into_iter().flatten();
            items.filter_map(|item| item["id"].as_str()?.parse().ok()).collect()
        }
        (Access::Queue(queue), Of::Queue) => {
            queue.list(usize::MAX)?.into_iter().map(|entry| entry.id).collect()
        }
        (Access::Queue(queue), Of::Dead | Of::DeadToRetry) => {
            queue.dead_letters(usize::MAX)?.into_iter().map(|letter| letter.id).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_an_id_chooses_all_that_have_it() {
        let ids: Vec<Uuid> = [
            "019aa5c2-0000-7000-8000-000000000001",
            "019aa5c2-0000-7000-8000-000000000002",
            "019aa5c3-0000-7000-8000-000000000003",
        ]
        .map(|id| id.parse().unwrap())
        .into();

        for (start, n) in [
            ("019aa5c3", 1),
            ("019AA5C2", 2),
            ("019aa5c200007", 2),
            ("019aa5c2-0000", 2),
            ("000000000002", 1),
            ("-800000000000000000", 0),
            ("02", 1),
            ("0", 3),
            ("f2", 0),
        ] {
            assert_eq!(chosen(&ids, start).len(), n, "{start}");
        }
    }
}
