//! `holdfast export`: images of a volume as an OCI image layout, beside a running registry.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use holdfast_cli_kit::confirm::ConfirmArgs;
use holdfast_cli_kit::exit_status::Answer;
use holdfast_cli_kit::output::CommonArgs;
use holdfast_cli_kit::terminal;
use holdfast_core::oci::Platform;
use holdfast_store::View;
use holdfast_volume_tools::archive::{self, ArchiveWriter, Bundle, FolderWriter, Name, TarWriter};

use crate::ls;

/// The image that every registry makes for the probes of its own nodes. It is not exported.
pub(crate) const PROBE: &str = "holdfast/probe";

/// Arguments of `export`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  holdfast export --data /var/lib/holdfast docker.io/library/nginx:1.27 -o nginx.tar
  holdfast export --data /var/lib/holdfast --all -o - > all.tar

IMAGE is a local name (team/app:1), a name of an upstream (docker.io/library/nginx:1.27, \
nginx:1.27) or NAME@DIGEST. Images of upstreams have the name of their upstream in the archive. An \
index stays byte for byte identical, with those of its platforms that were copied.

Read archives with `holdfast import`, `skopeo copy oci-archive:FILE.tar:NAME …`, \
`ctr images import` or `podman load`.

Exit status: 0 written, 2 it could not run.")]
pub struct Args {
    /// Data folder of the registry (rootdirectory of distribution)
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The images
    #[arg(value_name = "IMAGE", required_unless_present = "all")]
    images: Vec<String>,
    /// Every tag of the volume
    #[arg(long, conflicts_with = "images")]
    all: bool,
    /// A tar file if the name ends in .tar, standard output if it is -, else a folder
    #[arg(short, long, value_name = "FILE.tar|DIR|-")]
    output: PathBuf,
    /// Only this platform of an index, os/architecture[/variant]; may be given several times
    #[arg(long, value_name = "PLATFORM", value_parser = platform)]
    platform: Vec<Platform>,
    #[command(flatten)]
    confirm: ConfirmArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Parses `--platform`.
pub(crate) fn platform(text: &str) -> Result<Platform, String> {
    Platform::parse(text)
        .ok_or_else(|| "a platform is written os/architecture[/variant]".to_owned())
}

/// Writes the images.
pub(crate) fn run(args: &Args) -> ExitCode {
    args.common.apply();
    match export(args) {
        Ok(()) => args.common.exit(Answer::Yes),
        Err(error) => args.common.fail(&error),
    }
}

fn export(args: &Args) -> anyhow::Result<()> {
    if args.output.is_file() {
        args.confirm
            .ask(&format!("this overwrites {}", args.output.display()))?;
    }
    let view = ls::open(&args.data)?;
    let images = if args.all {
        everything(&view, &args.platform)?
    } else {
        let chosen = args.images.iter().map(|text| {
            let (name, digest) = archive::resolve(&view, text)?;
            let bundle = Bundle::collect(
                &mut archive::in_repository(&view, &name.repository),
                &digest,
                &args.platform,
            )
            .with_context(|| format!("{text} cannot be exported"))?;
            Ok((name, bundle))
        });
        chosen.collect::<anyhow::Result<Vec<_>>>()?
    };
    if images.is_empty() {
        bail!("there is no image to export");
    }
    for (name, bundle) in &images {
        tell_left_out(name, bundle, args.platform.is_empty());
    }
    let total = images.iter().map(|(_, bundle)| bundle.bytes()).sum();
    let written = write(&view, &images, &args.output, total)?;
    terminal::note(&format!(
        "{} of {} written to {}",
        terminal::count(images.len() as u64, "image", "images"),
        terminal::size(written),
        args.output.display()
    ));
    Ok(())
}

/// Every tag but the registry's own. One that is not whole ends the export: an archive of "all"
/// must not lack something silently.
fn everything(view: &View, platforms: &[Platform]) -> anyhow::Result<Vec<(Name, Bundle)>> {
    let mut images = Vec::new();
    let repositories = view.repositories()?;
    for repository in repositories
        .into_iter()
        .filter(|repository| repository.as_str() != PROBE)
    {
        for (tag, digest) in view.tags(&repository)? {
            let name = Name {
                repository: repository.clone(),
                tag: Some(tag),
                digest: None,
            };
            match digest.map(|digest| {
                Bundle::collect(
                    &mut archive::in_repository(view, &repository),
                    &digest,
                    platforms,
                )
            }) {
                Some(Ok(bundle)) => images.push((name, bundle)),
                Some(Err(archive::Error::Platform { .. })) => {}
                Some(Err(error)) => bail!(
                    "{name}: {error}; see `holdfast fsck`, or name the images that are to go out"
                ),
                None => bail!(
                    "{name} names nothing; see `holdfast fsck`, or name the images that are to go out"
                ),
            }
        }
    }
    Ok(images)
}

fn tell_left_out(name: &Name, bundle: &Bundle, all_wanted: bool) {
    let absent: Vec<String> = bundle
        .left_out
        .iter()
        .filter_map(|child| child.platform.as_ref())
        .filter(|platform| !platform.is_unknown())
        .map(ToString::to_string)
        .collect();
    if all_wanted && !absent.is_empty() {
        terminal::note(&format!(
            "{name} was never copied for {}; the archive holds its other platforms",
            absent.join(", ")
        ));
    }
}

fn write(view: &View, images: &[(Name, Bundle)], output: &Path, total: u64) -> anyhow::Result<u64> {
    if output == Path::new("-") {
        return transfer(
            view,
            images,
            &mut TarWriter::new(BufWriter::new(std::io::stdout().lock())),
            total,
        );
    }
    if output
        .extension()
        .is_none_or(|extension| extension != "tar")
    {
        let mut folder = FolderWriter::new(output)
            .with_context(|| format!("cannot make {}", output.display()))?;
        return transfer(view, images, &mut folder, total);
    }
    // Whole under its own name, or not there.
    let mut draft = output.as_os_str().to_owned();
    draft.push(".part");
    let draft = PathBuf::from(draft);
    let written = write_tar(view, images, &draft, total).and_then(|written| {
        std::fs::rename(&draft, output)
            .with_context(|| format!("cannot write {}", output.display()))?;
        Ok(written)
    });
    if written.is_err() {
        drop(std::fs::remove_file(&draft));
    }
    written
}

fn write_tar(
    view: &View,
    images: &[(Name, Bundle)],
    draft: &Path,
    total: u64,
) -> anyhow::Result<u64> {
    let file = File::create(draft).with_context(|| format!("cannot write {}", draft.display()))?;
    let mut tar = TarWriter::new(BufWriter::with_capacity(1 << 20, file));
    let written = transfer(view, images, &mut tar, total)?;
    let mut file = tar.into_inner();
    file.flush()?;
    file.get_ref().sync_all()?;
    Ok(written)
}

fn transfer(
    view: &View,
    images: &[(Name, Bundle)],
    target: &mut dyn ArchiveWriter,
    total: u64,
) -> anyhow::Result<u64> {
    let bar = terminal::bytes(total);
    let written = archive::export(view, images, target, &mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    written.map_err(|error| match error {
        archive::Error::Damaged { digest } => anyhow::anyhow!(
            "the bytes of {digest} on the volume are damaged; `holdfast fsck --deep --repair` moves them aside, then copy or push the image again"
        ),
        error => error.into(),
    })
}
