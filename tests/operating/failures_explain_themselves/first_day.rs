//! The mistakes of the first day, each with the advice that mends it.

use std::os::unix::fs::PermissionsExt;

use super::{nowhere, told};
use crate::support::{agent::Agent, pair, strangers};

/// An agent of which nothing but the configuration is looked at.
fn with_config(text: &str) -> Agent {
    let agent = Agent::new("", "", "");
    std::fs::write(agent.dir.path().join("config.toml"), text).unwrap();
    agent
}

#[test]
fn a_password_that_is_not_escaped_is_named_as_that_and_nothing_of_it_is_shown() {
    for password in ["s3@cret", "s3/cret", "s3?cret", "s3#cret", "s3%cret", "s3:cret"] {
        for host in ["h", "cluster.example/shop?w=1"] {
            let uri = format!("mongodb://ann:{password}@{host}");
            for agent in [Agent::new(&uri, &nowhere(), ""), Agent::new(&nowhere(), &uri, "")] {
                let (code, text) = told(&agent.cli(&["check"]));

                assert_eq!(code, Some(2), "{text}");
                assert!(text.contains("escape") || text.contains("%3F"), "{text}");
                assert!(
                    !text.contains("s3") && !text.contains("cret") && !text.contains("***"),
                    "{text}"
                );
            }
        }
    }
}

#[test]
fn a_string_that_was_copied_from_an_example_or_names_a_port_beside_srv_is_told_as_that() {
    for (uri, cause) in [
        ("mongodb+srv://outrigger:<db_password>@c.example/", "are those of an example"),
        ("mongodb://outrigger:…@127.0.0.1:27017/shop", "are those of an example"),
        ("mongodb://<user>:<password>@h/", "are those of an example"),
        ("mongodb+srv://outrigger:s3cret@c.example:27017/", "one host and no port"),
        ("mongodb+srv://outrigger:s3cret@a.example,b.example/", "one host and no port"),
        ("mongodb://:s3cret@h/", "there is no user name"),
    ] {
        let (code, text) = told(&Agent::new(uri, &nowhere(), "").cli(&["check"]));

        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(cause) && text.contains("MONGODB_LOCAL_URI"), "{uri}: {text}");
        assert!(!text.contains("s3cret") && !text.contains("db_password"), "{text}");
    }
}

#[test]
fn a_file_of_authorities_that_is_missing_or_holds_none_is_named_with_its_option() {
    let agent = Agent::new("mongodb://h/?tls=true&tlsCAFile=ca.pem", &nowhere(), "");

    let (code, text) = told(&agent.cli(&["check"]));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("`ca.pem`, which `tlsCAFile` names, cannot be used: No such"), "{text}");
    std::fs::write(agent.dir.path().join("ca.pem"), "a host's name").unwrap();
    let (code, text) = told(&agent.cli(&["check"]));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("it holds no certificate"), "{text}");
}

#[test]
fn a_slip_in_a_level_or_in_a_variable_is_told_as_it_was_written() {
    let mut agent = with_config("[log]\nlevel = \"wran\"\n[queue]\npath = 7\n");
    agent.set_env("SYNC_WORKER_INTERVAL", "1s");

    let (code, text) = told(&agent.cli(&["check"]));

    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("`wran` is no level; did you mean `warn`?"), "{text}");
    assert!(text.contains("an integer where a text is expected"), "{text}");
    assert!(text.contains("`SYNC_WORKER_INTERVAL` = \"1s\": not a number"), "{text}");
    let fine = with_config("[log]\nlevel = \"info,outrigger::worker=debug,outrigger::sync\"\n");
    let (_, text) = told(&fine.cli(&["check"]));
    assert!(!text.contains("log.level"), "{text}");
}

#[test]
fn an_answer_that_cannot_be_written_is_no_success() {
    let agent = with_config("");
    for command in [&["roles"][..], &["roles", "--json"], &["man"], &["completions", "bash"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();

        let output = agent.command().args(command).stdout(full).output().unwrap();

        let (code, text) = told(&output);
        assert_eq!(code, Some(1), "{command:?}: {text}");
        assert!(text.contains("cannot be written to stdout"), "{command:?}: {text}");
    }
}

#[test]
fn bad_toml_names_line_and_column_with_a_caret_and_all_mistakes_at_once() {
    let agent = with_config("[local]\ntimeout = \"5s\n[atlas]\nallow_insecure == true\n");

    let (code, text) = told(&agent.cli(&["check"]));

    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("config.toml:2:") && text.contains(" 2 | timeout = \"5s"), "{text}");
    assert!(
        text.contains("config.toml:4:") && text.contains(" 4 | allow_insecure == true"),
        "{text}"
    );
    assert!(text.contains("the configuration has 2 mistakes") && text.contains('^'), "{text}");
    assert!(text.find("toml:2:") < text.find("toml:4:"), "in the order of the file: {text}");

    let twice = with_config("[local]\ntimeout = \"5s\"\ntimeout = \"6s\"\n");
    let (code, text) = told(&twice.cli(&["check"]));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("duplicate key") && text.contains("config.toml:3:1"), "{text}");
}

#[test]
fn unknown_keys_and_values_out_of_range_are_told_with_their_lines_all_at_once() {
    let mut agent =
        with_config("[local]\ntimeot = \"5s\"\n[worker]\nlanes = 300\n[atlas]\nfoo = 3\n");
    agent.set_env("SYNC_BATCH_SIZE", "many");

    let (code, text) = told(&agent.cli(&["check"]));

    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("has 4 mistakes"), "{text}");
    assert!(text.contains("did you mean `local.timeout`?\n  --> config.toml:2:1"), "{text}");
    assert!(text.contains("accepted: 1 to 64\n  --> config.toml:4:9"), "{text}");
    assert!(text.contains("unknown key `atlas.foo`"), "{text}");
    assert!(text.contains("config.toml:6:1") && text.contains("`SYNC_BATCH_SIZE`"), "{text}");
}

#[test]
fn a_file_of_a_connection_string_that_is_missing_unreadable_or_empty_is_named_with_its_key() {
    let agent = with_config("[local]\nuri_file = \"local.uri\"\n");
    let file = agent.dir.path().join("local.uri");
    let run = || {
        let (code, text) = told(&agent.cli(&["check"]));
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains("`local.uri`, which `local.uri_file` names"), "{text}");
        assert!(!text.contains("outrigger init"), "{text}");
        text
    };

    let text = run();
    assert!(text.contains("No such file") && text.contains("chmod 600"), "{text}");
    for nothing in ["", "\n"] {
        std::fs::write(&file, nothing).unwrap();
        let text = run();
        assert!(text.contains("it is empty") && text.contains("on one line"), "{text}");
    }
    std::fs::write(&file, "s3cret").unwrap();
    let text = run();
    assert!(text.contains("begins with `mongodb://`") && !text.contains("s3cret"), "{text}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o0)).unwrap();
    // Root may read it all the same.
    if std::fs::read(&file).is_err() {
        let text = run();
        assert!(text.contains("Permission denied") && text.contains("let the user"), "{text}");
    }
}

#[test]
fn when_neither_end_is_named_both_are_told_at_once_with_an_example() {
    let (code, text) = told(&with_config("").cli(&["check"]));

    assert_eq!(code, Some(2), "{text}");
    for part in ["MONGODB_LOCAL_URI='mongodb://USER", "MONGODB_ATLAS_URI='mongodb+srv://USER"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(text.contains("local.uri_file") && text.contains("atlas.uri_file"), "{text}");
}

#[test]
fn init_writes_where_config_says() {
    let agent = with_config("");

    let written = agent.cli(&["--config", "new.toml", "init"]);

    assert!(written.status.success());
    let text = String::from_utf8_lossy(&written.stdout).into_owned();
    assert!(text.contains("wrote new.toml") && text.contains("--config new.toml check"), "{text}");
    let path = agent.dir.path().join("new.toml");
    assert_eq!(std::fs::read_to_string(path).unwrap(), outrigger::config::REFERENCE);
    assert_eq!(std::fs::read_to_string(agent.dir.path().join("config.toml")).unwrap(), "");
    let (code, text) = told(&agent.cli(&["--config", "new.toml", "init"]));
    assert_eq!(code, Some(1));
    assert!(text.contains("`new.toml` is already there"), "{text}");
}

#[test]
fn another_program_on_the_port_is_told_as_that() {
    for stranger in [strangers::web, strangers::greeting, strangers::closing] {
        let agent = with_config(&format!(
            "[admin]\nlisten = \"127.0.0.1:{}\"\n",
            strangers::serve(stranger)
        ));
        for command in [&["status"][..], &["dead", "list"], &["pause"], &["sync"], &["flush"]] {
            let (code, text) = told(&agent.cli(command));

            assert_eq!(code, Some(1), "{command:?}: {text}");
            assert!(text.contains("does not answer as an agent does"), "{command:?}: {text}");
            assert!(text.contains("ss -ltnp") && text.contains("`admin.listen`"), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_in_the_folder_is_refused_with_the_process_of_the_first() {
    let (local, atlas) = pair().await;
    let first = Agent::started(&local.uri(), &atlas.uri());
    first.streaming().await;

    let (code, text) = told(&first.cli(&["run"]));

    assert_eq!(code, Some(1), "{text}");
    let holder = format!("an agent runs with the process id {}", first.id());
    assert!(text.contains(&holder) && text.contains("stop the other agent"), "{text}");
}
