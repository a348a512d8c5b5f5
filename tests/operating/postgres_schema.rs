//! `outrigger schema`: tables in a real PostgreSQL, for collections of a real MongoDB.

use std::{path::Path, process::Command};

use mongodb::bson::{Bson, doc, oid::ObjectId};
use tempfile::TempDir;

use crate::support::{mongod::Mongod, postgres::Postgres};

const DECLARED: &str = r#"
[target]
kind = "postgres"
[[column]]
collection = "shop.Orders"
path = "customer.name"
name = "customer"
type = "text"
[[child]]
collection = "shop.Orders"
path = "items"
table = "orders_items"
columns = [{ path = "sku", type = "text" }, { path = "qty", type = "integer" }]
"#;

/// Exit code, what it printed, and what it complained of.
fn outrigger(
    dir: &Path,
    config: &str,
    env: &[(&str, &str)],
    args: &[&str],
) -> (i32, String, String) {
    let file = dir.join("config.toml");
    std::fs::write(&file, config).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .arg("--config")
        .arg(&file)
        .args(args)
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_printed_made_and_drafted_from_what_is_there() {
    let (mongod, postgres) = tokio::join!(Mongod::start(), Postgres::start());
    let shop = mongod.client.database("shop");
    let order = |n: i32| {
        doc! {
            "_id": n, "customer": { "name": "Ann", "ref": ObjectId::new() }, "total": n,
            "note": if n == 0 { Bson::Int32(1) } else { Bson::String("text".into()) },
            "items": [{ "sku": "a", "qty": 1 }],
        }
    };
    let orders: Vec<_> = (0..20).map(order).collect();
    shop.collection("Orders").insert_many(orders).await.unwrap();
    // A name that PostgreSQL would cut, and one that the child has.
    let long = "x".repeat(80);
    shop.collection(&long).insert_one(doc! { "_id": 1 }).await.unwrap();
    shop.collection("orders_items").insert_one(doc! { "_id": 1 }).await.unwrap();
    let dir = TempDir::new().unwrap();
    let (local, target) =
        (format!("mongodb://127.0.0.1:{}/shop?replicaSet=rs", mongod.port), postgres.uri());
    let env = [("MONGODB_LOCAL_URI", &*local), ("POSTGRES_URI", &*target)];

    let (code, sql, told) = outrigger(dir.path(), DECLARED, &env, &["schema"]);

    assert_eq!((code, &*told), (0, ""), "{sql}");
    assert!(sql.contains("CREATE TABLE IF NOT EXISTS \"shop\".\"Orders\" ("), "{sql}");
    assert!(sql.contains("-- # in 20 of 20 documents; 1 of another type would be NULL\n"), "{sql}");
    assert!(
        sql.contains(
            "-- path = \"customer.ref\"\n-- name = \"customer_ref\"\n-- type = \"text\"\n"
        ),
        "{sql}"
    );
    assert!(!sql.contains("path = \"customer.name\"") && !sql.contains("[[child]]"), "{sql}");
    assert!(sql.contains("PostgreSQL cannot have it by its own name"), "{sql}");
    let none = postgres
        .ask("SELECT schema_name FROM information_schema.schemata WHERE schema_name = 'shop'");
    assert_eq!(none.await, Vec::<String>::new(), "it only prints");

    let (code, _, told) = outrigger(dir.path(), DECLARED, &env, &["schema", "--apply"]);
    assert_eq!(code, 0, "{told}");

    let columns = "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = 'shop' \
                   AND table_name = 'Orders' AND column_name IN ('_id', 'doc', 'customer') ORDER BY 1";
    assert_eq!(postgres.ask(columns).await, ["_id|bytea", "customer|text", "doc|jsonb"]);
    let child = "SELECT column_name FROM information_schema.columns WHERE table_name = 'orders_items' ORDER BY ordinal_position";
    assert_eq!(postgres.ask(child).await, ["_id", "position", "sku", "qty"]);
    let tables = postgres
        .ask("SELECT ns, length(table_name) FROM outrigger.tables ORDER BY length(ns)")
        .await;
    assert_eq!(
        tables,
        ["shop.Orders|6".to_owned(), "shop.orders_items|21".to_owned(), format!("shop.{long}|63")]
    );
    assert_eq!(postgres.ask("SELECT count(*) FROM outrigger.sync_status").await, ["0"]);

    // Again, with one more column: what is there stays.
    let more = format!(
        "{DECLARED}[[column]]\ncollection = \"shop.Orders\"\npath = \"total\"\ntype = \"numeric\"\n"
    );
    let (code, _, told) = outrigger(dir.path(), &more, &env, &["schema", "--apply"]);
    assert_eq!(code, 0, "{told}");
    let added = "SELECT data_type FROM information_schema.columns WHERE table_name = 'Orders' AND column_name = 'total'";
    assert_eq!(postgres.ask(added).await, ["numeric"]);

    // A password that is wrong is said with what to do, and is not repeated.
    let wrong = target.replace(":outrigger@", ":s3cret@");
    let env = [("MONGODB_LOCAL_URI", &*local), ("POSTGRES_URI", &*wrong)];
    let (code, _, told) = outrigger(dir.path(), DECLARED, &env, &["schema", "--apply"]);
    assert_eq!(code, 4, "{told}");
    assert!(told.contains("28P01") && told.contains("hint") && !told.contains("s3cret"), "{told}");
}

#[test]
fn what_is_declared_wrongly_is_told_all_at_once_and_where() {
    let dir = TempDir::new().unwrap();
    let wrong = "[target]\nkind = \"postgres\"\n[atlas]\ncompressors = []\n\
                 [[column]]\ncollection = \"shop.orders\"\npath = \"a..b\"\ntype = \"txt\"\n\
                 [[column]]\ncollection = \"shop.orders\"\npath = \"doc\"\ntype = \"text\"\n\
                 [[column]]\ncollection = \"shop.*\"\npath = \"c\"\ntyp = \"text\"\n\
                 [[child]]\ncollection = \"shop.orders\"\npath = \"items\"\ntable = \"t\"\ncolumns = [{ path = \"x\" }]\n";

    let (code, _, told) = outrigger(dir.path(), wrong, &[], &["schema"]);

    assert_eq!(code, 2, "{told}");
    for part in [
        "`atlas.compressors`: does not go with `target.kind = \"postgres\"`: PostgreSQL's protocol has no compression",
        "4 | compressors = []",
        "7 | path = \"a..b\"",
        "= \"txt\" is no type of a column; accepted: text, integer, bigint",
        "8 | type = \"txt\"",
        "makes a column `doc`, which every such table has of its own",
        "names one collection, without `*`",
        "unknown key `column.typ`; did you mean `type`?",
        "`child`: `type` is missing",
    ] {
        assert!(told.contains(part), "`{part}` is missing in {told}");
    }
}

#[test]
fn a_target_that_is_away_is_named_without_its_password_and_tables_are_postgres_alone() {
    let dir = TempDir::new().unwrap();
    let env = [
        ("MONGODB_LOCAL_URI", "mongodb://127.0.0.1:1/?replicaSet=rs"),
        ("POSTGRES_URI", "postgres://ann:s3cret@127.0.0.1:1/shop"),
    ];
    let (code, out, told) =
        outrigger(dir.path(), "[target]\nkind = \"postgres\"\n", &env, &["check"]);
    assert_eq!(code, 3, "{told}");
    assert!(out.contains("postgres") && out.contains("POSTGRES_URI"), "{out}");
    assert!(!told.contains("s3cret") && !out.contains("s3cret"), "{told}{out}");
    let (code, _, told) = outrigger(dir.path(), "", &env, &["schema"]);
    assert_eq!(code, 2);
    assert!(told.contains("`target.kind`: is `atlas`"), "{told}");
}

#[test]
fn what_cannot_be_connected_with_is_refused_without_being_repeated() {
    let dir = TempDir::new().unwrap();
    let local = ("MONGODB_LOCAL_URI", "mongodb://127.0.0.1:1/?replicaSet=rs");
    let into = "[target]\nkind = \"postgres\"\n";
    let (code, _, told) = outrigger(dir.path(), into, &[local], &["run"]);
    assert_eq!(code, 2, "{told}");
    assert!(told.contains("POSTGRES_URI"), "{told}");
    for uri in ["postgres://ann:s3cret%40h/shop", "postgres://ann:s3cret", "postgres://h/s?s3cret"]
    {
        let env = [local, ("POSTGRES_URI", uri)];
        let (code, out, told) = outrigger(dir.path(), into, &env, &["run"]);
        assert_eq!(code, 2, "{uri}: {told}");
        assert!(!told.contains("s3cret") && !out.contains("s3cret"), "{uri}: {told}");
    }
}
