//! `outrigger completions` and `outrigger man`: for packages, and for whoever installs by hand.

use std::{io::Write, process::ExitCode as Code};

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{
    cli::args::Cli,
    observe::report::{ExitCode, Failure},
};

/// Prints the completions for a shell.
pub fn completions(shell: Shell) -> Code {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "outrigger", &mut text);
    // A reader that has gone is no error.
    let _ = std::io::stdout().write_all(&text);
    Code::SUCCESS
}

/// Prints the man page, all commands in one.
pub fn man() -> Result<Code, Failure> {
    let mut text = Vec::new();
    page(&mut text).map_err(|error| Failure::new(ExitCode::Problem, error))?;
    let _ = std::io::stdout().write_all(&text);
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
    if command.has_subcommands() {
        writeln!(text, ".SS {name}\n{}", escaped(&about))?;
        for sub in command.get_subcommands() {
            describe(text, sub, &format!("{name} "))?;
        }
    } else {
        writeln!(text, ".SS {name}\n{}", escaped(&about))?;
    }
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
        writeln!(text, ".TP\n{}\n{}", escaped(&shown), escaped(&help))?;
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
}
