//! `outrigger completions` and `outrigger man`: for packages, and for whoever installs by hand.

use std::{io::Write, process::ExitCode as Code};

use clap::CommandFactory;
use clap_complete::Shell;

use super::show;
use crate::{
    cli::args::Cli,
    observe::report::{ExitCode, Failure},
};

/// Prints the completions for a shell.
pub fn completions(shell: Shell) -> Result<Code, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "outrigger", &mut text);
    show::whole(&text)?;
    Ok(Code::SUCCESS)
}

/// Prints the man page, all commands in one.
pub fn man() -> Result<Code, Failure> {
    let mut text = Vec::new();
    page(&mut text).map_err(|error| Failure::new(ExitCode::Problem, error))?;
    show::whole(&text)?;
    Ok(Code::SUCCESS)
}

fn page(text: &mut Vec<u8>) -> std::io::Result<()> {
    let mut command = Cli::command();
    command.build();
    let man = clap_mangen::Man::new(command.clone());
    man.render_title(text)?;
    man.render_name_section(text)?;
    man.render_synopsis_section(text)?;
    man.render_description_section(text)?;
    man.render_options_section(text)?;
    writeln!(text, ".SH COMMANDS")?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        describe(text, sub, "")?;
    }
    man.render_extra_section(text)?;
    Ok(())
}

fn describe(text: &mut Vec<u8>, command: &clap::Command, parents: &str) -> std::io::Result<()> {
    let name = format!("{parents}{}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    writeln!(text, ".SS {name}\n{}", escaped(&about))?;
    for argument in command.get_arguments().filter(|argument| !argument.is_global_set()) {
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let shown = match (argument.get_long(), argument.get_value_names()) {
            (Some("help"), _) => continue,
            (Some(long), Some(values)) if argument.get_action().takes_values() => {
                format!("--{long} {}", values.join(" "))
            }
            (Some(long), _) => format!("--{long}"),
            (None, Some(values)) => values.join(" "),
            (None, None) => argument.get_id().to_string(),
        };
        let short = argument.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
        let choices = argument.get_possible_values();
        let choices: Vec<_> = choices.iter().map(clap::builder::PossibleValue::get_name).collect();
        let help = match argument.get_default_values() {
            [default] if argument.get_action().takes_values() => {
                format!("{help} [at first: {}]", default.to_string_lossy())
            }
            _ => help,
        };
        let help = match choices.as_slice() {
            [] => help,
            _ if !argument.get_action().takes_values() => help,
            some => format!("{help} [{}]", some.join(", ")),
        };
        writeln!(text, ".TP\n{}\n{}", escaped(&(short + &shown)), escaped(&help))?;
    }
    // After its own options, which would stand under another heading else.
    for sub in command.get_subcommands() {
        describe(text, sub, &format!("{name} "))?;
    }
    Ok(())
}

/// Dashes stay dashes, and no line becomes a request.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace("\n.", "\n\\&.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_man_page_has_every_command() {
        let mut text = Vec::new();

        page(&mut text).unwrap();

        let text = String::from_utf8(text).unwrap();
        for heading in [".SS run", ".SS status", ".SS queue export", ".SS dead retry", ".SS doc"] {
            assert!(text.contains(heading), "{heading} is missing");
        }
        assert!(text.contains("\\-\\-allow\\-mass\\-delete"), "{text}");
    }

    #[test]
    fn the_man_page_has_each_option_under_its_own_command() {
        let mut text = Vec::new();
        page(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let mut command = Cli::command();
        command.build();
        let mut seen = 0;
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let nested = sub
                .get_subcommands()
                .map(|below| (format!("{} {}", sub.get_name(), below.get_name()), below));
            for (name, of) in std::iter::once((sub.get_name().to_owned(), sub)).chain(nested) {
                let (_, rest) = text.split_once(&format!(".SS {name}\n")).expect(&name);
                let own = rest.split(".SS ").next().unwrap();
                for argument in of.get_arguments().filter(|argument| !argument.is_global_set()) {
                    let Some(long) = argument.get_long().filter(|long| *long != "help") else {
                        continue;
                    };
                    assert!(own.contains(&escaped(&format!("--{long}"))), "{name} --{long}: {own}");
                    seen += 1;
                }
            }
        }
        assert!(seen > 15, "{seen}");
    }
}
