//! `spinup completions` and `spinup man`: what packagers install beside the program.

use super::{Cli, Failure, print};
use crate::report::file::write_atomically;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::path::{Path, PathBuf};

/// Arguments of `spinup completions`.
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Arguments of `spinup man`.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Write spinup.1 and a page for each command into this directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "spinup", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

pub(super) fn man(args: &ManArgs) -> Result<u8, Failure> {
    let page = |command: clap::Command| -> Result<Vec<u8>, Failure> {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        Ok(page)
    };
    let mut all = Cli::command();
    all.build();
    let Some(dir) = &args.dir else {
        print(&String::from_utf8_lossy(&page(all)?))?;
        return Ok(0);
    };
    let write = |name: &str, page: &[u8]| {
        let path: &Path = &dir.join(name);
        write_atomically(path, |out| out.write_all(page))
            .map_err(|error| Failure::Harness(format!("{}: the page cannot be written: {error}", path.display())))
    };
    for subcommand in all.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("spinup-{}", subcommand.get_name());
        // `build` has given it that name to be shown by.
        let page = page(subcommand.clone().version(env!("CARGO_PKG_VERSION")))?;
        write(&format!("{name}.1"), &page)?;
    }
    write("spinup.1", &page(all)?)?;
    Ok(0)
}
