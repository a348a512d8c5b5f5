//! From MongoDB to PostgreSQL: what `docs/migrate.md` says is done, line by line, in the order of the page.

use mongodb::bson::{Bson, doc};

use crate::support::{
    PATIENCE, agent::Agent, book::page, eventually, mongod::Mongod, orders, postgres::Postgres,
};

/// The blocks of a page with what they are for, in their order.
fn blocks(text: &str) -> Vec<(String, String)> {
    let fenced = text.split("```").skip(1).step_by(2);
    let parts = fenced.filter_map(|block| block.split_once('\n'));
    parts.map(|(language, text)| (language.to_owned(), text.to_owned())).collect()
}

const DECLARED: &str = "[[column]]\ncollection = \"shop.orders\"\npath = \"customer.name\"\nname = \"customer\"\ntype = \"text\"\n\
                        [[child]]\ncollection = \"shop.orders\"\npath = \"items\"\ntable = \"orders_items\"\n\
                        columns = [{ path = \"sku\", type = \"text\" }]\n";

#[tokio::test(flavor = "multi_thread")]
async fn an_application_leaves_mongodb_in_the_three_phases_of_the_book() {
    let (local, target) = tokio::join!(Mongod::start(), Postgres::start());
    let order = |id: i32| {
        let customer = if id == 13 { Bson::Int32(13) } else { Bson::String(format!("c{id}")) };
        let status = if id % 2 == 0 { "new" } else { "sent" };
        let (items, odd) =
            (vec![doc! { "sku": "s" }, doc! { "sku": "t" }], if id == 5 { "\0" } else { "" });
        doc! { "_id": id, "customer": { "name": customer }, "status": status, "total": 2.5, "items": items, "odd": odd }
    };
    orders(&local).insert_many((0..50).map(order)).await.unwrap();
    let mut agent = Agent::into_postgres(&local.uri(), &target.uri(), DECLARED);
    let mut answers = Vec::new();
    for (language, text) in blocks(&page("docs/migrate.md").text) {
        match &*language {
            "sh" if text.trim() == "outrigger run" => {
                agent.start(&[]);
                agent.streaming().await;
            }
            "sh" => {
                for line in text.lines() {
                    let command = line.split("  #").next().unwrap().trim();
                    // What is on its way is waited for by whoever asks at that moment.
                    eventually(command, PATIENCE, async || {
                        let program = agent.command();
                        let done = std::process::Command::new("bash")
                            .args(["-euo", "pipefail", "-c"])
                            .arg(command.replacen("outrigger", "\"$PROGRAM\"", 1))
                            .env("PROGRAM", program.get_program())
                            .envs(program.get_envs().filter_map(|(name, of)| Some((name, of?))))
                            .current_dir(agent.dir.path())
                            .output()
                            .unwrap();
                        eprintln!("{command}\n{}", String::from_utf8_lossy(&done.stderr));
                        done.status.success()
                    })
                    .await;
                }
            }
            "sql" => {
                // The agent is stopped before its tables are the application's.
                if text.starts_with("DROP SCHEMA") {
                    assert!(agent.stop().success());
                }
                answers.push(target.ask(&text).await);
            }
            other => panic!("`{other}`"),
        }
    }

    let [failed, inexact, misfits, ..] = &answers[..] else { panic!("{answers:?}") };
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(*inexact, ["shop.orders|odd|a NUL in a text|1"]);
    assert_eq!(*misfits, ["{\"$numberInt\":\"13\"}|13"]);
    // The application goes on alone.
    assert_eq!(target.ask("SELECT count(*) FROM shop.open_orders").await, ["25"]);
    target.ask("INSERT INTO shop.orders (id, doc, customer) VALUES ('new', '{}', 'Eve')").await;
    let lines = "SELECT count(*) FROM shop.orders_items i JOIN shop.orders o ON o.id = i.order_id";
    assert_eq!(target.ask(lines).await, ["100"]);
}
