//! The copy is a stand-in for Atlas, and both sides are compared byte for byte.

use std::time::{Duration, Instant};

use crate::{
    shop::{self, Shop},
    show::{Table, conclude, say, summary},
    support::{
        agent::Agent,
        equal::{Everything, Held, MayDiffer, differences, everything},
        mongod::Mongod,
        proxy::Proxy,
    },
};

/// Whether both sides are equal in the end.
pub async fn demo() -> bool {
    say("starting the application's database and a stand-in for Atlas (two mongod, on 127.0.0.1)");
    let (local, atlas) = tokio::join!(Mongod::start(), Mongod::start());
    let line = Proxy::to(atlas.port).await;
    let stock = shop::fill(&local.client).await;
    say(&format!("the shop has {stock}; starting the agent"));
    let agent = Agent::started(&local.uri(), &line.uri());
    agent.streaming().await;
    say("first copy done; the application starts taking orders\n");

    let shop = Shop::opens(&local.client);
    let changes = shop.changes.clone();
    let table = Table { agent: &agent, changes, last: "", ask: async || String::new() };
    let caught_up = table.watch_over_an_outage(&line, "Atlas").await;
    let changes = shop.closes().await;
    wait_for_the_rest(&local, &atlas).await;
    table.line("the application has stopped").await;

    println!();
    say("comparing both sides, byte for byte");
    let (here, there) = tokio::join!(everything(&local), everything(&atlas));
    let (here, there) = (here.expect("local can be read"), there.expect("Atlas can be read"));
    let found = differences(&here, &there, MayDiffer::Nothing);
    summary(&agent, changes, &size(&here), caught_up);
    conclude(&found, "Both sides are equal, byte for byte.");
    found.is_empty()
}

fn size(held: &Everything) -> String {
    let documents: usize = held.values().map(Held::len).sum();
    format!("documents                    {documents} in {} collections", held.len())
}

async fn wait_for_the_rest(local: &Mongod, atlas: &Mongod) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while Instant::now() < give_up {
        if let (Ok(here), Ok(there)) = (everything(local).await, everything(atlas).await)
            && differences(&here, &there, MayDiffer::Nothing).is_empty()
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
