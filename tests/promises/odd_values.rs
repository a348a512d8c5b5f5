//! Values that no driver writes, and `_id`s that are one although they differ: what a server takes of them is copied,
//! streamed, merged while it waits, compared and found equal, byte for byte.

use std::collections::BTreeMap;

use mongodb::bson::RawDocument;
use rand::{SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::equal,
    mongod::Mongod,
    odd::{self, text},
    odd_values::{Value, change, forms, id, insert},
    pair, seed,
    unasked::Unasked::Retries,
};

/// What a server answers to one statement: how many documents it has changed, or why none.
fn changed(server: &Mongod, command: &RawDocument) -> Result<i32, String> {
    let reply = odd::ask(server.port, b"odd", command).unwrap();
    if reply.get_f64("ok").ok() != Some(1.0) {
        return Err(text(&reply, "errmsg"));
    }
    match reply.get_array("writeErrors") {
        Ok(errors) => Err(format!("{:?}", errors.into_iter().next())),
        Err(_) => Ok(reply.get_i32("n").unwrap()),
    }
}

/// Each form once, in a document of its own; returns those that the server refuses.
fn each_form(server: &Mongod, round: i32) -> BTreeMap<String, String> {
    let mut refused = BTreeMap::new();
    for (n, (name, form)) in (1_000 * round..).zip(forms()) {
        let id = Value { kind: 0x10, bytes: n.to_le_bytes().into() };
        if let Err(why) = changed(server, &insert("forms", &id, &form)) {
            refused.insert(name, why);
        }
    }
    refused
}

fn work(server: &Mongod, rng: &mut StdRng, steps: usize) {
    let forms = forms();
    let mut made = 0;
    for n in 0..steps {
        let (id, form) = (id(rng), &forms.choose(rng).unwrap().1);
        let command = match n % 3 {
            0 => insert("ids", &id, form),
            _ => change("ids", &id, form, rng),
        };
        made += usize::from(changed(server, &command).is_ok_and(|n| n > 0));
    }
    // Many an `_id` is there already, or is not, and some are forbidden.
    assert!(made * 5 >= steps, "the server made {made} of {steps} changes");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_form_and_ids_that_are_one_although_they_differ_arrive_as_they_are() {
    let mut rng = StdRng::seed_from_u64(seed());
    let (local, atlas) = pair().await;
    let refused = each_form(&local, 1);
    work(&local, &mut rng, 300);
    println!("{} of {} forms are refused: {refused:#?}", refused.len(), forms().len());
    assert!(refused.len() * 10 < forms().len(), "{refused:#?}");
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[worker]\nupdate_mode = \"auto\"\n");
    agent.may(&[Retries], "a document whose `_id` is another one's to a server waits for that one");
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    assert_eq!(each_form(&local, 2).len(), refused.len());
    for round in 0..6 {
        let waits = round % 2 == 0;
        if waits {
            assert!(agent.cli(&["pause"]).status.success());
        }
        if round == 3 {
            agent.kill();
        }
        work(&local, &mut rng, 200);
        if round == 3 {
            agent.start(&[]);
        }
        if waits {
            assert!(agent.cli(&["resume"]).status.success());
        }
        equal(&local, &atlas, PATIENCE).await;
    }

    agent.streaming().await;
    for how in [&["verify"][..], &["verify", "--digest"]] {
        assert_eq!(agent.cli_json(how).unwrap()["equal"], true, "{how:?}");
    }
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
    assert!(agent.stop().success());
}
