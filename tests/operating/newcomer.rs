//! From an empty machine to a verified copy, and back from it, with access control and TLS on both sides: the commands
//! are those of the book, taken from its pages, in their order.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use mongodb::{
    Client,
    bson::{Bson, Document, doc},
};
use regex::Regex;
use tempfile::TempDir;

use crate::support::{
    PATIENCE,
    agent::signal,
    book::{Page, page},
    certificates::Certificates,
    eventually, free_port,
    guarded::{Guarded, PASSWORD},
};

/// What a shell is given, and is not done here, with the reason.
const NOT_HERE: [(&str, &str); 1] =
    [("cargo install --path .", "the program is built already; here it is found on PATH")];

/// A person with a terminal, in an empty folder.
struct Newcomer {
    dir: TempDir,
    /// What differs between the book's machines and these: text, and what stands for it here.
    here: Vec<(String, String)>,
    exports: String,
    agent: Option<Child>,
}

impl Newcomer {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap(), here: Vec::new(), exports: String::new(), agent: None }
    }

    fn means(&mut self, text: &str, here: &str) {
        self.here.push((text.to_owned(), here.to_owned()));
    }

    fn shell(&self, script: &str) -> Command {
        let program = Path::new(env!("CARGO_BIN_EXE_outrigger"));
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(self.dir.path())
            .env("PATH", format!("{}:{path}", program.parent().unwrap().display()))
            .env_remove("MONGODB_LOCAL_URI")
            .env_remove("MONGODB_ATLAS_URI");
        command
    }

    /// Types what the page's blocks for a shell say.
    async fn types(&mut self, page: &Page) {
        for block in page.blocks("sh") {
            let mut lines = String::new();
            for line in block.lines() {
                if NOT_HERE.iter().any(|(left_out, _)| line.starts_with(left_out)) {
                    continue;
                }
                let line = self
                    .here
                    .iter()
                    .fold(line.to_owned(), |line, (text, here)| line.replace(text, here));
                // A terminal keeps what was exported in it.
                if line.starts_with("export ") {
                    self.exports += &(line.clone() + "\n");
                }
                lines += &(line + "\n");
            }
            let script = self.exports.clone() + &lines;
            if lines.trim() == "outrigger run" {
                let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
                // In the shell's place, so that a signal reaches it.
                let script = self.exports.clone() + "exec outrigger run";
                self.agent =
                    Some(self.shell(&script).stderr(log).stdout(Stdio::null()).spawn().unwrap());
                continue;
            }
            // The first question may come before the agent listens.
            eventually("it says yes", PATIENCE, async || {
                let done = self.shell(&script).output().unwrap();
                let is_done = done.status.success();
                if !is_done {
                    eprintln!("{lines}\n{}", String::from_utf8_lossy(&done.stderr));
                }
                is_done || self.agent.is_none() && panic!("{lines}")
            })
            .await;
            self.moves_the_port();
        }
    }

    /// Other tests run on this machine, and the default is one port.
    fn moves_the_port(&self) {
        let path = self.dir.path().join("config.toml");
        if let Ok(text) = std::fs::read_to_string(&path)
            && text.contains("\"127.0.0.1:8686\"")
        {
            let free = format!("\"127.0.0.1:{}\"", free_port());
            std::fs::write(path, text.replace("\"127.0.0.1:8686\"", &free)).unwrap();
        }
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// The command that a line of `mongosh` sends.
fn command(name: &str, argument: &str) -> Document {
    let quoted = Regex::new(r"([{,]\s*)([A-Za-z]+):").unwrap().replace_all(argument, "$1\"$2\":");
    let json = quoted.replace("passwordPrompt()", &format!("\"{PASSWORD}\""));
    let value: serde_json::Value =
        serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"));
    let Bson::Document(given) = Bson::try_from(value).unwrap() else { panic!("{json}") };
    // `createRole` and `createUser` name what they make by `role` and `user`.
    let of = name.strip_prefix("create").unwrap().to_lowercase();
    let mut command = doc! { name: given.get_str(&of).unwrap() };
    command.extend(given.into_iter().filter(|(key, _)| *key != of));
    command
}

/// Does what a block for `mongosh` says, as far as it makes roles and users; returns how many.
async fn pastes(admin: &Client, block: &str) -> usize {
    let mut done = 0;
    for (at, _) in block.match_indices("db.create") {
        let (name, rest) = block[at + "db.".len()..].split_once('(').unwrap();
        let end = rest.find("\n})\n").map_or(usize::MAX, |end| end + 2);
        let end = end.min(rest.find("] })\n").map_or(usize::MAX, |end| end + 3));
        admin.database("admin").run_command(command(name, &rest[..end])).await.unwrap();
        done += 1;
    }
    done
}

async fn without_users(certificates: &Certificates) -> Guarded {
    let server = Guarded::start_tls(vec![], certificates).await;
    server.admin(doc! { "dropUser": "outrigger" }).await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_gets_from_an_empty_folder_to_a_verified_copy_and_back_by_what_the_book_says() {
    let certificates = Certificates::new();
    let (local, atlas) = tokio::join!(without_users(&certificates), without_users(&certificates));
    let orders = local.root.database("shop").collection::<Document>("orders");
    orders.insert_many((0..500).map(|id| doc! { "_id": id, "n": id % 7 })).await.unwrap();
    orders
        .create_index(mongodb::IndexModel::builder().keys(doc! { "n": 1 }).build())
        .await
        .unwrap();
    let (start, configure) = (page("docs/start.md"), page("docs/configure.md"));

    // The users, as they are to be pasted.
    let of_start = start.blocks("js");
    assert_eq!(of_start[0], "rs.initiate()\n", "done by `Guarded` already");
    assert_eq!(pastes(&local.root, &of_start[1]).await, 2);
    let whole = &configure.blocks("js")[0];
    let (of_local, of_atlas) = whole.split_once("// On the target").unwrap();
    assert!(
        of_local.contains(of_start[1].trim_start_matches("use admin\n")),
        "both pages say the same"
    );
    assert_eq!(pastes(&atlas.root, of_atlas).await, 1);

    // The rest, as it is to be typed.
    let tls = certificates.options();
    let mut newcomer = Newcomer::new();
    let local_port = local.server.port;
    newcomer.means("outrigger:…@", &format!("outrigger:{PASSWORD}@"));
    newcomer.means("127.0.0.1:27017", &format!("127.0.0.1:{local_port}"));
    newcomer.means("replicaSet=rs0", "replicaSet=rs");
    newcomer.means("authSource=admin", &format!("authSource=admin{tls}"));
    let cluster = format!(
        "mongodb://outrigger:{PASSWORD}@127.0.0.1:{}/?directConnection=true{tls}",
        atlas.server.port
    );
    newcomer.means(
        &format!("mongodb+srv://outrigger:{PASSWORD}@cluster0.example.mongodb.net"),
        &cluster,
    );
    newcomer.types(&start).await;

    let copy = atlas.root.database("shop").collection::<Document>("orders");
    assert_eq!(copy.count_documents(doc! {}).await.unwrap(), 500);
    // Where everything is, for whoever looks for it later.
    let log = std::fs::read_to_string(newcomer.dir.path().join("log")).unwrap();
    let told = log
        .lines()
        .find(|line| line.contains("where things are"))
        .unwrap_or_else(|| panic!("{log}"));
    let here = newcomer.dir.path().canonicalize().unwrap();
    for name in ["config.toml", "queue", "outrigger.token"] {
        assert!(told.contains(here.join(name).to_str().unwrap()), "{name}: {told}");
    }
    assert!(
        told.contains("dashboard=http://127.0.0.1:")
            || told.contains("dashboard=\"http://127.0.0.1:"),
        "{told}"
    );
    let agent = newcomer.agent.as_mut().unwrap();
    signal(agent.id(), "TERM");
    assert!(agent.wait().unwrap().success());

    // The local database is lost.
    let empty = Guarded::start_tls(vec![], &certificates).await;
    newcomer.means("admin:…@", &format!("root:{PASSWORD}@"));
    newcomer.means(&format!("127.0.0.1:{local_port}"), &format!("127.0.0.1:{}", empty.server.port));
    newcomer.agent = None;
    newcomer.types(&page("docs/restore.md")).await;
    let back = empty.root.database("shop").collection::<Document>("orders");
    assert_eq!(back.count_documents(doc! {}).await.unwrap(), 500);
    assert_eq!(back.list_index_names().await.unwrap().len(), 2);
}
