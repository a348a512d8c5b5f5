//! A replica set of three, whose primary can be made to change.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use mongodb::{
    Client,
    bson::{Document, doc},
};

use super::{eventually, mongod::Mongod};

/// Three members. An election takes about two seconds.
pub struct ReplicaSet {
    /// No other set has it: to a driver, and to servers, a set is what goes by its name.
    name: String,
    pub members: Vec<Mongod>,
    /// Follows the primary.
    pub client: Client,
}

impl ReplicaSet {
    pub async fn start() -> Self {
        static SETS: AtomicU32 = AtomicU32::new(0);
        let name = format!("rs{}", SETS.fetch_add(1, Ordering::Relaxed));
        let args = ["--replSet", &name];
        let members = join_all((0..3).map(|_| Mongod::start_with(&args))).await;
        let list: Vec<Document> = (0..)
            .zip(&members)
            .map(|(id, member)| doc! { "_id": id, "host": format!("127.0.0.1:{}", member.port) })
            .collect();
        let settings = doc! { "electionTimeoutMillis": 2_000, "heartbeatIntervalMillis": 500 };
        let config = doc! { "_id": &name, "members": list, "settings": settings };
        members[0].admin(doc! { "replSetInitiate": config }).await;
        let client = Client::with_uri_str(uri(&name, &members)).await.unwrap();
        let set = Self { name, members, client };
        set.primary().await;
        eventually("two secondaries", Duration::from_secs(60), async || {
            let admin = set.client.database("admin");
            admin.run_command(doc! { "replSetGetStatus": 1 }).await.is_ok_and(|status| {
                let members = status.get_array("members").unwrap().iter();
                let secondary = |member: &&mongodb::bson::Bson| {
                    member
                        .as_document()
                        .unwrap()
                        .get_str("stateStr")
                        .is_ok_and(|state| state == "SECONDARY")
                };
                members.filter(secondary).count() == 2
            })
        })
        .await;
        set
    }

    /// The place of the primary among the members.
    pub async fn primary(&self) -> usize {
        let mut found = None;
        eventually("a primary", Duration::from_secs(60), async || {
            for (n, member) in self.members.iter().enumerate() {
                let admin = member.client.database("admin");
                let hello = admin.run_command(doc! { "hello": 1 });
                let hello = tokio::time::timeout(Duration::from_secs(2), hello).await;
                if let Ok(Ok(hello)) = hello
                    && hello.get_bool("isWritablePrimary").unwrap_or(false)
                {
                    found = Some(n);
                }
            }
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Has another member elected, in order.
    pub async fn step_down(&self) {
        let primary = self.primary().await;
        let command =
            doc! { "replSetStepDown": 30, "secondaryCatchUpPeriodSecs": 10, "force": true };
        // The server may close the connection instead of an answer.
        let _ = self.members[primary].client.database("admin").run_command(command).await;
        let others: Vec<usize> = (0..3).filter(|n| *n != primary).collect();
        eventually("another primary", Duration::from_secs(60), async || {
            others.contains(&self.primary().await)
        })
        .await;
    }

    /// Another member joins, and the one at this place leaves for good.
    pub async fn replace(&mut self, n: usize) {
        while self.primary().await == n {
            self.step_down().await;
        }
        let next = Mongod::start_with(&["--replSet", &self.name]).await;
        let host = |member: &Mongod| format!("127.0.0.1:{}", member.port);
        let (new, old) = (host(&next), host(&self.members[n]));
        self.configure(|members| {
            let ids = members.iter().map(|member| member.get_i32("_id").unwrap());
            let id = ids.max().unwrap() + 1;
            members.push(doc! { "_id": id, "host": &new });
        })
        .await;
        eventually("a secondary", Duration::from_secs(60), async || {
            let hello = next.client.database("admin").run_command(doc! { "hello": 1 }).await;
            hello.is_ok_and(|hello| hello.get_bool("secondary").unwrap_or(false))
        })
        .await;
        self.configure(|members| members.retain(|member| member.get_str("host").unwrap() != old))
            .await;
        self.members[n] = next;
    }

    /// Changes the list of the members. One voter at a time may come or go.
    async fn configure(&self, change: impl Fn(&mut Vec<Document>)) {
        eventually("another configuration", Duration::from_secs(60), async || {
            let primary = self.primary().await;
            let admin = self.members[primary].client.database("admin");
            let Ok(told) = admin.run_command(doc! { "replSetGetConfig": 1 }).await else {
                return false;
            };
            let mut config = told.get_document("config").unwrap().clone();
            let members = config.get_array("members").unwrap().iter();
            let mut members: Vec<_> =
                members.map(|member| member.as_document().unwrap().clone()).collect();
            change(&mut members);
            config.insert("members", members);
            config.insert("version", config.get_i32("version").unwrap() + 1);
            admin.run_command(doc! { "replSetReconfig": config }).await.is_ok()
        })
        .await;
    }

    /// `kill -9` of the primary; returns its place.
    pub async fn kill_primary(&mut self) -> usize {
        let primary = self.primary().await;
        self.members[primary].kill();
        primary
    }

    pub fn uri(&self) -> String {
        uri(&self.name, &self.members)
    }
}

fn uri(name: &str, members: &[Mongod]) -> String {
    let hosts: Vec<_> = members.iter().map(|member| format!("127.0.0.1:{}", member.port)).collect();
    format!("mongodb://{}/?replicaSet={name}", hosts.join(","))
}
