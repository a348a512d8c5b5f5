//! `outrigger roles`: the users of both ends, with no more rights than the work needs.
//!
//! The one source of what stands in `deploy/roles.js` and in the documentation, which a test keeps equal. Users of Atlas
//! cannot be made by `createUser`: there it is Atlas's own command line, or its web page.

use std::{
    collections::BTreeSet,
    fmt::Write,
    io::{BufRead, IsTerminal},
    process::ExitCode as Code,
};

use serde_json::{Value, json};

use super::{args::check_patterns, show};
use crate::{
    cli::args::RolesArgs,
    config::{Config, PostgresUri, SourceKind, Uri, encoded},
    model::namespace::NamespaceFilter,
    observe::report::{ExitCode, Failure},
    source::outbox::table,
};

/// What both users are called.
const USER: &str = "outrigger";

/// For `createRole` on the local database.
const READER: &str = r#"{
  "role": "outriggerReader",
  "privileges": [
    { "resource": { "db": "", "collection": "" }, "actions": ["find", "changeStream", "listCollections", "listIndexes", "collStats"] },
    { "resource": { "cluster": true }, "actions": ["listDatabases", "replSetGetConfig", "replSetGetStatus"] },
    { "resource": { "db": "local", "collection": "oplog.rs" }, "actions": ["find"] }
  ],
  "roles": []
}"#;

pub fn run(config: &Config, args: &RolesArgs) -> Result<Code, Failure> {
    if args.encode {
        return encode();
    }
    let filter = if args.ns.is_empty() { config.filter()? } else { check_patterns(&args.ns)? };
    let source = Reader::of(config);
    let roles = Roles { source, ..Roles::of(&filter, &config.atlas.state_database) };
    if args.output.json {
        show::json(&roles.as_json());
    } else if args.mongosh {
        show::line(roles.for_mongosh().trim_end());
    } else {
        show::line(roles.for_people(&Next::of(config, args)).trim_end());
    }
    Ok(Code::SUCCESS)
}

/// A password from stdin as a connection string takes it. Nothing is kept of it.
fn encode() -> Result<Code, Failure> {
    if std::io::stdin().is_terminal() {
        eprintln!(
            "the password, which will be seen as you type (or `read -rs` it, and pipe it in):"
        );
    }
    let mut password = String::new();
    let read = std::io::stdin().lock().read_line(&mut password);
    read.map_err(|error| {
        Failure::new(ExitCode::Problem, anyhow::Error::new(error).context("stdin cannot be read"))
            .hint("printf %s \"$PASSWORD\" | outrigger roles --encode")
    })?;
    show::line(encoded(password.trim_end_matches(['\r', '\n'])));
    Ok(Code::SUCCESS)
}

/// The user of what is read from.
enum Reader {
    Mongodb,
    /// An outbox: the statements that make it.
    Sql(Vec<String>),
}

impl Reader {
    fn of(config: &Config) -> Self {
        match config.source.kind {
            SourceKind::Mongodb => Self::Mongodb,
            SourceKind::Outbox => {
                let mut statements = vec![format!("CREATE ROLE {USER} LOGIN")];
                statements.extend(table::grants(&config.outbox, &config.routes, USER));
                Self::Sql(statements)
            }
        }
    }

    /// For the mongosh, or the psql, of an administrator.
    fn text(&self) -> String {
        match self {
            Self::Mongodb => format!(
                "use admin\ndb.createRole({READER})\n\
                 db.createUser({{ user: \"{USER}\", pwd: passwordPrompt(), roles: [\"outriggerReader\"] }})\n"
            ),
            Self::Sql(statements) => {
                let mut text = statements.iter().fold(String::new(), |mut text, statement| {
                    let _ = writeln!(text, "{statement};");
                    text
                });
                // Asks for the password, and sends nothing of it but its hash.
                let _ = writeln!(text, "\\password {USER}");
                text
            }
        }
    }
}

/// What is to be typed once both users are there: the strings that are in use, as far as they are, with whom they are for.
struct Next {
    /// The variable of the source, and what it is to hold.
    source: (&'static str, String),
    atlas: String,
    /// Patterns that were asked for, and that the configuration does not have.
    include: Vec<String>,
}

impl Next {
    fn of(config: &Config, args: &RolesArgs) -> Self {
        let example = "127.0.0.1:27017/?replicaSet=rs0&authSource=admin";
        let local = config.local.uri.as_ref().map(filled);
        let local = || local.unwrap_or_else(|| format!("mongodb://{USER}:PASSWORD@{example}"));
        let atlas = config.atlas.uri.as_ref().map(filled);
        let is_configured = config.namespaces.include == args.ns;
        Self {
            source: match config.source.kind {
                SourceKind::Mongodb => ("MONGODB_LOCAL_URI", local()),
                SourceKind::Outbox => ("OUTBOX_URI", filled_of_sql(config.outbox.uri.as_ref())),
            },
            atlas: atlas
                .unwrap_or_else(|| format!("mongodb+srv://{USER}:PASSWORD@CLUSTER.mongodb.net/")),
            include: if is_configured { Vec::new() } else { args.ns.clone() },
        }
    }
}

/// Of what a string holds nothing but where it leads, and how.
fn filled(uri: &Uri) -> String {
    const PLAIN: [&str; 6] =
        ["replicaSet", "directConnection", "tls", "ssl", "tlsCAFile", "loadBalanced"];
    let shown = uri.to_string();
    let (scheme, place) = shown.split_once("://").unwrap_or(("mongodb", &shown));
    let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
    let of = |name: &&str| Some(format!("{name}={}", uri.option(name)?));
    let mut options: Vec<String> = PLAIN.iter().filter_map(of).collect();
    // Atlas's own records say so by themselves.
    if !uri.is_srv() {
        options.push("authSource=admin".to_owned());
    }
    let options = options.join("&");
    let mark = if options.is_empty() { "" } else { "?" };
    format!("{scheme}://{USER}:PASSWORD@{hosts}/{database}{mark}{options}")
}

/// The databases that the patterns name; `None` where they choose among all.
pub(super) fn databases(filter: &NamespaceFilter) -> Option<BTreeSet<String>> {
    let patterns = &filter.patterns().include;
    let named: BTreeSet<String> =
        patterns.iter().filter_map(|pattern| Some(pattern.split_once('.')?.0.to_owned())).collect();
    let is_everything = patterns.is_empty() || named.iter().any(|db| db.contains(['*', '?']));
    (!is_everything).then_some(named)
}

/// As [`filled`], of a PostgreSQL.
fn filled_of_sql(uri: Option<&PostgresUri>) -> String {
    let shown = uri.map(ToString::to_string);
    let shown = shown.as_deref().unwrap_or("postgres://HOST:5432/DATABASE");
    let (scheme, place) = shown.split_once("://").unwrap_or(("postgres", shown));
    format!("{scheme}://{USER}:PASSWORD@{place}")
}

struct Roles {
    source: Reader,
    /// What the user in Atlas gets, on which database.
    target: Vec<(&'static str, String)>,
    /// The databases; `None` for all.
    databases: Option<BTreeSet<String>>,
}

impl Roles {
    fn of(filter: &NamespaceFilter, state_database: &str) -> Self {
        let admin = || "admin".to_owned();
        let Some(named) = databases(filter) else {
            let roles = ["readWriteAnyDatabase", "dbAdminAnyDatabase", "clusterMonitor"];
            let target = roles.into_iter().map(|role| (role, admin())).collect();
            return Self { source: Reader::Mongodb, target, databases: None };
        };
        let of_db = |db: &String| [("readWrite", db.clone()), ("dbAdmin", db.clone())];
        let mut target: Vec<_> = named.iter().flat_map(of_db).collect();
        target.push(("readWrite", state_database.to_owned()));
        target.push(("clusterMonitor", admin()));
        Self { source: Reader::Mongodb, target, databases: Some(named) }
    }

    fn what(&self) -> String {
        match &self.databases {
            None => "every database".to_owned(),
            Some(named) => {
                let names: Vec<_> = named.iter().map(|db| format!("`{db}`")).collect();
                let word = if names.len() == 1 { "database" } else { "databases" };
                format!("the {word} {}", names.join(", "))
            }
        }
    }

    /// As `createUser` takes them.
    fn list(&self) -> String {
        let rows = self
            .target
            .iter()
            .map(|(role, db)| format!("  {{ \"role\": \"{role}\", \"db\": \"{db}\" }}"));
        format!("[\n{}\n]", rows.collect::<Vec<_>>().join(",\n"))
    }

    /// As Atlas's command line takes them.
    fn option(&self) -> String {
        self.target.iter().map(|(role, db)| format!("{role}@{db}")).collect::<Vec<_>>().join(",")
    }

    fn create_user(&self) -> String {
        format!(
            "atlas dbusers create --username {USER} --password \"$PASSWORD\" --role {}",
            self.option()
        )
    }

    fn of_target(&self) -> String {
        format!(
            "use admin\ndb.createUser({{ user: \"{USER}\", pwd: passwordPrompt(), roles: {} }})\n",
            self.list()
        )
    }

    /// `deploy/roles.js`.
    fn for_mongosh(&self) -> String {
        let local = match &self.source {
            Reader::Mongodb => format!(
                "// --- on the local database: reads only --------------------------------------------------------\n{}\n",
                self.source.text()
            ),
            // Another shell's.
            Reader::Sql(_) => String::new(),
        };
        format!(
            "// Least privilege, to paste into mongosh. Passwords are asked for. A test runs the agent with exactly these.\n\
             // `outrigger roles --mongosh` prints this for the namespaces of a configuration.\n\n\
             {local}\
             // --- on the target, for {} --------\n\
             // Atlas takes no createUser: `outrigger roles` prints its own command, and the rows of its web page.\n{}",
            self.what(),
            self.of_target(),
        )
    }

    fn for_people(&self, next: &Next) -> String {
        let place = match &self.source {
            Reader::Mongodb => {
                "On the local database, in mongosh (reads only; it asks for a password)"
            }
            Reader::Sql(_) => {
                "On the database of the outbox, in psql, once `outrigger outbox init` has made the table (it asks for a password)"
            }
        };
        let mut text = format!(
            "{place}:\n\n{}\n\
             In Atlas, for {}. By its command line (`atlas auth login` first):\n\n\
             read -rs PASSWORD\n{}\natlas accessLists create --currentIp --comment outrigger\n\n\
             Or by its web page:\n\
             Database Access, Add New Database User, Password, user `{USER}`, Specific Privileges:\n",
            self.source.text(),
            self.what(),
            self.create_user(),
        );
        for (role, db) in &self.target {
            let _ = writeln!(text, "  {role:<21} database {db}");
        }
        let _ = write!(
            text,
            "Network Access, Add IP Address: the one by which this machine reaches the internet\n\n\
             The connection strings; what is no letter or digit of a password must be escaped (percent-encoded), which\n\
             `printf %s \"$PASSWORD\" | outrigger roles --encode` does:\n\n\
             export {}='{}'\n\
             export MONGODB_ATLAS_URI='{}'\n\n",
            next.source.0, next.source.1, next.atlas,
        );
        if !next.include.is_empty() {
            let _ = write!(
                text,
                "In the configuration, so that these and no others are replicated:\n\n\
                 [namespaces]\n\
                 include = {:?}\n\n",
                next.include
            );
        }
        text.push_str("Then `outrigger check` says whether all of it is there.\n");
        text
    }

    fn as_json(&self) -> Value {
        let (source, reader) = match &self.source {
            Reader::Mongodb => {
                let role: Value = serde_json::from_str(READER).unwrap_or_default();
                ("local", json!({ "createRole": role, "roles": ["outriggerReader"] }))
            }
            Reader::Sql(statements) => ("outbox", json!({ "statements": statements })),
        };
        let roles: Vec<_> =
            self.target.iter().map(|(role, db)| json!({ "role": role, "db": db })).collect();
        json!({
            "user": USER,
            source: reader,
            "atlas": {
                "roles": roles,
                "commands": [self.create_user(), "atlas accessLists create --currentIp --comment outrigger"],
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(include: &[&str]) -> Roles {
        let include: Vec<String> = include.iter().map(|&pattern| pattern.to_owned()).collect();
        Roles::of(&NamespaceFilter::new(&include, &[]).unwrap(), "outrigger")
    }

    #[test]
    fn the_file_to_paste_is_what_the_command_prints() {
        let file = include_str!("../../deploy/roles.js");

        assert_eq!(of(&["shop.*"]).for_mongosh(), file);
    }

    #[test]
    fn the_strings_lead_where_those_in_use_do_and_hold_nothing_of_them_that_is_secret() {
        for (text, filled_in) in [
            (
                "mongodb://ann:s3cret@db:37017/shop?replicaSet=rs7&tls=true&tlsCAFile=%2Fca.pem&appName=s3cret",
                "mongodb://outrigger:PASSWORD@db:37017/shop?replicaSet=rs7&tls=true&tlsCAFile=%2Fca.pem&authSource=admin",
            ),
            ("mongodb+srv://ann:s3cret@c.example", "mongodb+srv://outrigger:PASSWORD@c.example/"),
        ] {
            assert_eq!(filled(&Uri::parse(text).unwrap()), filled_in);
        }
        let mut config = Config::default();
        let args = |ns: &[&str]| RolesArgs {
            ns: ns.iter().map(|&pattern| pattern.to_owned()).collect(),
            mongosh: false,
            encode: false,
            output: crate::cli::args::Output { json: false },
        };
        let asked = args(&["shop.*"]);
        let printed = of(&["shop.*"]).for_people(&Next::of(&config, &asked));
        assert!(printed.contains("[namespaces]\ninclude = [\"shop.*\"]\n"), "{printed}");
        config.namespaces.include.clone_from(&asked.ns);
        let printed = of(&["shop.*"]).for_people(&Next::of(&config, &asked));
        assert!(!printed.contains("[namespaces]"), "{printed}");
    }

    #[test]
    fn the_role_that_is_printed_is_json() {
        let printed = of(&["shop.*"]).as_json();

        assert_eq!(printed["local"]["createRole"]["role"], "outriggerReader");
        assert_eq!(printed["atlas"]["roles"][0]["role"], "readWrite");
    }

    #[test]
    fn atlas_gets_each_database_by_name_or_all_of_them() {
        assert_eq!(
            of(&["shop.orders", "shop.items", "crm.*"]).option(),
            "readWrite@crm,dbAdmin@crm,readWrite@shop,dbAdmin@shop,readWrite@outrigger,clusterMonitor@admin"
        );
        for all in [&[][..], &["*.*"], &["shop*.orders", "crm.*"]] {
            assert_eq!(
                of(all).option(),
                "readWriteAnyDatabase@admin,dbAdminAnyDatabase@admin,clusterMonitor@admin"
            );
        }
    }
}
