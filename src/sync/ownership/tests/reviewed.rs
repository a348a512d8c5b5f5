//! What `check` says of a target before an agent takes it.

use super::*;
use crate::{
    side::{Looks, Side},
    sync::ownership::{Asker, Remark, not_ours, review},
};

fn is_known(scene: &Scene) {
    scene.atlas.looks_like(Looks { set_id: Some("theirs".to_owned()), ..Looks::default() });
}

/// Each remark: what kind it is, and its words.
async fn remarks(scene: &Scene, asker: Asker<'_>) -> Vec<(&'static str, String)> {
    let (local, atlas): (&dyn Side, &dyn Side) = (&*scene.local, &*scene.atlas);
    let found = review(local, atlas, &filter(PATTERNS), OURS, asker).await.unwrap();
    let told = |remark| match remark {
        Remark::Fine(text) => ("fine", text),
        Remark::Warning { text, .. } => ("warning", text),
        Remark::Refusal(error) => ("refusal", error.to_string()),
    };
    found.into_iter().map(told).collect()
}

fn kinds(remarks: &[(&'static str, String)]) -> Vec<&'static str> {
    remarks.iter().map(|(kind, _)| *kind).collect()
}

#[tokio::test(start_paused = true)]
async fn an_empty_target_is_fine() {
    let scene = scene();
    is_known(&scene);

    let found = remarks(&scene, Asker::Starts(None)).await;

    assert_eq!(kinds(&found), ["fine"]);
    assert!(found[0].1.contains("holds nothing"), "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn our_own_copy_is_fine_and_whose_agent_keeps_it_is_said() {
    let scene = scene().atlas_holds(&[orders(), items()]);
    is_known(&scene);
    scene.records.has(lease_of(OURS, PATTERNS));
    assert!(remarks(&scene, Asker::Unknown).await[0].1.ends_with("the copy of this source"));
    scene.records.is_taken_by(OURS, life("1"));

    for asker in [Asker::Starts(Some("we")), Asker::Unknown] {
        let found = remarks(&scene, asker).await;
        assert_eq!(kinds(&found), ["fine"]);
        assert!(found[0].1.starts_with("the 2 collections") && found[0].1.contains("host `host`"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_agent_of_another_machine_is_a_refusal_and_nothing_is_fine_then() {
    let scene = scene().atlas_holds(&[orders()]);
    is_known(&scene);
    scene.records.has(lease_of(OURS, PATTERNS));
    scene.records.is_taken_by(OURS, agent("they", "theirs"));

    for asker in [Asker::Starts(Some("we")), Asker::Starts(None)] {
        let found = remarks(&scene, asker).await;
        assert_eq!(kinds(&found), ["refusal"], "{found:?}");
        assert!(found[0].1.contains("another agent replicates"));
    }
    assert_eq!(kinds(&remarks(&scene, Asker::Unknown).await), ["fine"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_somebody_elses_is_a_refusal_without_a_lease_and_a_warning_beside_one() {
    let scene = scene().atlas_holds(&[orders(), items()]);
    is_known(&scene);
    let found = remarks(&scene, Asker::Starts(None)).await;
    assert_eq!(kinds(&found), ["refusal"]);
    assert!(found[0].1.contains("somebody else's"), "{found:?}");

    scene.records.has(lease_of(OURS, &["shop.orders"]));
    let found = remarks(&scene, Asker::Starts(None)).await;

    assert_eq!(kinds(&found), ["warning"]);
    assert!(found[0].1.starts_with("shop.items will not be written"), "{found:?}");
    let not_ours = not_ours(&*scene.atlas, &filter(PATTERNS), OURS).await.unwrap();
    assert!(not_ours.iter().eq([&items()]));
}

#[tokio::test(start_paused = true)]
async fn sources_that_meet_and_rings_are_refusals() {
    let scene = scene();
    is_known(&scene);
    scene.records.has(lease_of("others", &["*.orders"]));
    scene.upstream.has(lease_of("theirs", PATTERNS));

    let found = remarks(&scene, Asker::Starts(None)).await;

    assert_eq!(kinds(&found), ["refusal", "refusal", "fine"]);
    assert!(found[0].1.contains("`*.orders`") && found[1].1.contains("the copy of this Atlas"));
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_read_is_a_warning() {
    let scene = scene();
    scene.atlas.looks_like(Looks { set_name: Some("rs0".to_owned()), ..Looks::default() });
    scene.upstream.is_denied(true);

    let found = remarks(&scene, Asker::Starts(None)).await;

    assert_eq!(kinds(&found), ["warning", "warning", "fine"]);
    assert!(found[1].1.contains("`outrigger.replicas` in the local database"), "{found:?}");

    // What tells nothing of itself is no MongoDB, which nobody replicates from.
    scene.atlas.looks_like(Looks::default());
    assert_eq!(kinds(&remarks(&scene, Asker::Starts(None)).await), ["warning", "fine"]);
}

#[tokio::test(start_paused = true)]
async fn of_a_target_without_records_nothing_can_be_said() {
    let (local, atlas) = (Arc::new(FakeSchemas::at(NOW)), Arc::new(FakeSchemas::at(NOW)));
    let scene = scene_between(local, atlas, Arc::default(), Arc::default());
    let scene = scene.atlas_holds(&[orders()]);

    assert!(remarks(&scene, Asker::Starts(None)).await.is_empty());
    assert!(not_ours(&*scene.atlas, &filter(PATTERNS), OURS).await.unwrap().is_empty());
}
