//! What makes the options and indexes of one collection those of the other, and how long that is tried.

use std::{sync::Arc, time::Instant};

use super::*;
use crate::{
    runtime::clock,
    side::fake_schema::{FakeSchemas, index, unaltered, unique},
};

fn orders() -> Namespace {
    Namespace::new("shop", "orders")
}

struct Scene {
    local: Arc<FakeSchemas>,
    atlas: Arc<FakeSchemas>,
    sides: Sides,
    stop: Stop,
    began: Instant,
}

fn scene() -> Scene {
    let (local, atlas) = (Arc::new(FakeSchemas::at(1)), Arc::new(FakeSchemas::at(1)));
    for end in [&local, &atlas] {
        end.has(&orders(), &[]);
    }
    let sides = Sides::new(local.clone(), atlas.clone(), 1, 0);
    Scene { local, atlas, sides, stop: Stop::default(), began: clock::now() }
}

impl Scene {
    async fn steps(&self, original: SideName) -> Vec<String> {
        let options = RawDocumentBuf::new();
        let options = (&options, &options);
        let steps = schema_steps(&self.sides, &orders(), original, options, &self.stop).await;
        sentences(&steps.unwrap())
    }

    /// Builds this index, and tells what is left.
    async fn builds(&self, end: SideName, name: &str) -> Result<Vec<Problem>, SyncError> {
        let steps = unique_builds(&[unique(name)]);
        let permit = self.local.gate.permit();
        apply_schema(&self.sides, end, &orders(), (steps, &permit), &self.stop).await
    }

    /// How often a build of Atlas is tried that ends so each time, and whether it is left in the end.
    async fn tried(&self, why: impl Fn() -> Unaltered) -> (usize, bool) {
        self.atlas.answers_with((0..6).map(|_| why()));
        let left = self.builds(SideName::Atlas, "a").await.unwrap();
        (self.atlas.commands(self.began).len(), !left.is_empty())
    }
}

fn because(because: Because, error: SinkError) -> Unaltered {
    Unaltered { because, error: error.into(), ..unaltered("the server says so", false) }
}

fn away() -> SinkError {
    SinkError::Unavailable("no primary".to_owned())
}

#[tokio::test]
async fn an_index_that_is_made_on_both_sides_while_the_copy_is_waited_for_is_no_difference() {
    let scene = scene();
    let ends = [scene.local.clone(), scene.atlas.clone()];
    let make = move || ends.iter().for_each(|end| end.has(&orders(), &[index("late")]));
    scene.atlas.while_it_lists(make);

    assert_eq!(scene.steps(SideName::Local).await, Vec::<String>::new());
}

#[tokio::test]
async fn either_side_may_be_the_original() {
    let scene = scene();
    scene.local.has(&orders(), &[index("here")]);
    scene.atlas.has(&orders(), &[index("there")]);

    let missing = |name| format!("index `{name}` is missing in Atlas");
    assert!(scene.steps(SideName::Local).await.contains(&missing("here")));
    assert!(scene.steps(SideName::Atlas).await.contains(&missing("there")));
}

#[test]
fn only_what_documents_must_obey_is_built_before_them() {
    let builds = unique_builds(&[index("a"), unique("u"), index("b")]);

    assert_eq!(sentences(&builds), ["index `u` is missing in Atlas"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_made_is_there_and_what_is_left_is_told_in_words_that_fit_the_end() {
    let scene = scene();
    assert!(scene.builds(SideName::Atlas, "a").await.unwrap().is_empty());
    assert_eq!(scene.atlas.indexes(&orders()), ["a"]);

    let refusal = || Unaltered { advice: Some("grant it".to_owned()), ..unaltered("no", false) };
    scene.local.answers_with([refusal(), refusal()]);
    let left = scene.builds(SideName::Local, "a").await.unwrap();
    let told = sentences(&left).join("; ");
    assert!(told.starts_with("index `a` is missing in the local database"), "{told}");
    assert!(told.contains("grant it"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn how_often_a_command_is_tried_depends_on_what_was_answered() {
    let refused = || SinkError::Rejected("it is too large".to_owned());
    let denied = || SinkError::Denied("who are you".to_owned());
    for (why, error, tried) in [
        (Because::Answer, refused(), 1),
        (Because::Forbidden, denied(), 1),
        (Because::Answer, away(), 2),
        (Because::InProgress, away(), 2),
        (Because::ChangeOfState, away(), 5),
        (Because::Silence, away(), 5),
        (Because::Answer, denied(), 5),
    ] {
        let found = scene().tried(|| because(why, error.clone())).await;

        assert_eq!(found, (tried, true), "{why:?}: {error}");
    }
    let several = async |error: SinkError| {
        let scene = scene();
        scene.atlas.answers_with((0..9).map(|_| because(Because::Answer, error.clone())));
        let steps = unique_builds(&[unique("a"), unique("b")]);
        let permit = (steps, &scene.local.gate.permit());
        let left =
            apply_schema(&scene.sides, SideName::Atlas, &orders(), permit, &scene.stop).await;
        (left.unwrap().len(), scene.atlas.commands(scene.began).len())
    };
    assert_eq!(several(refused()).await, (2, 3), "each of them is tried by itself");
    assert_eq!(several(away()).await, (2, 2), "what may pass is the same for each");
    let done = scene().tried(|| because(Because::NoMajority, away())).await;
    assert_eq!(done, (1, false), "it is done");
}

#[tokio::test(start_paused = true)]
async fn what_passes_is_waited_for() {
    let scene = scene();
    scene
        .atlas
        .answers_with([because(Because::Silence, away()), because(Because::Silence, away())]);

    assert!(scene.builds(SideName::Atlas, "a").await.unwrap().is_empty());

    assert_eq!(scene.atlas.indexes(&orders()), ["a"]);
    assert!(clock::since(scene.began) > std::time::Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_altered_once_the_permit_holds_no_longer_or_the_agent_leaves() {
    let scene = scene();
    let permit = scene.local.gate.permit();
    scene.local.gate.close(&permit, "another process answers");
    let steps = unique_builds(&[unique("a")]);
    let applied = (steps, &permit);
    let ended = apply_schema(&scene.sides, SideName::Atlas, &orders(), applied, &scene.stop).await;
    assert!(matches!(ended, Err(SyncError::Outdated)));
    assert!(scene.atlas.commands(scene.began).is_empty());

    let scene = self::scene();
    scene.atlas.builds_take(std::time::Duration::from_secs(3_600));
    let leaving = async {
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        scene.stop.leave.cancel();
    };
    let (ended, ()) = tokio::join!(scene.builds(SideName::Atlas, "a"), leaving);
    assert!(matches!(ended, Err(SyncError::Stopped)));
}

#[tokio::test(start_paused = true)]
async fn atlas_is_altered_when_the_lease_is_held_again() {
    let mut scene = scene();
    let lease: Arc<crate::gate::lease::Lease> = Arc::default();
    scene.sides.lease = Some(lease.clone());
    let atlas = scene.atlas.clone();
    let renewed = async {
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        assert!(atlas.commands(scene.began).is_empty());
        lease.renew(crate::gate::lease::BootTime::now());
    };

    let (left, ()) = tokio::join!(scene.builds(SideName::Atlas, "a"), renewed);

    assert!(left.unwrap().is_empty());
    assert_eq!(scene.atlas.indexes(&orders()), ["a"]);
}
