//! `holdfast import`: images from OCI image layouts into a volume, verified, beside a running
//! registry or before its first start.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use holdfast_cli_kit::exit_status::{Answer, Usage};
use holdfast_cli_kit::output::{Document, OutputArgs};
use holdfast_cli_kit::terminal;
use holdfast_core::oci::Platform;
use holdfast_store::volume::{Disk, Volume as _};
use holdfast_store::{LockHolder, Options, Store, WriteGate, WriteLimits};
use holdfast_volume_tools::archive::{self, ArchiveReader, Counts, FolderReader, Plan, TarReader};
use serde::Serialize;

use crate::export::platform;

/// Bytes of standard input that are read between two checks of the free space.
const SPOOL_BYTES: u64 = 16 << 20;

/// As in the registry's values.
const RESERVE_PERCENT: u8 = 5;

/// Arguments of `import`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  holdfast import --data /var/lib/holdfast images.tar
  holdfast import --data /var/lib/holdfast --dry-run images.tar
  holdfast import --data /var/lib/holdfast - < images.tar

An image docker.io/library/nginx:1.27 of an archive becomes the local \
docker.io/library/nginx:1.27 that pods are rewritten to. An image becomes visible only after all \
of it was verified. A second run writes only what is missing.

Exit status: 0 imported, 2 it could not run.")]
pub struct Args {
    /// Data folder of the registry (rootdirectory of distribution)
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// OCI image layouts: uncompressed tar files or folders; - reads a tar file from standard
    /// input, which needs room for it on the volume twice
    #[arg(value_name = "FILE.tar|DIR|-", required = true)]
    archives: Vec<PathBuf>,
    /// The name of the image, where an archive holds one image
    #[arg(long, value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
    /// Only this platform of an index, os/architecture[/variant]; may be given several times
    #[arg(long, value_name = "PLATFORM", value_parser = platform)]
    platform: Vec<Platform>,
    /// Percentage of the volume that stays free, as the registry's limits.reservePercent
    #[arg(long, value_name = "0-50", default_value_t = RESERVE_PERCENT, value_parser = clap::value_parser!(u8).range(0..=50))]
    reserve_percent: u8,
    /// Only prints what it would do
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl Args {
    fn limits(&self) -> WriteLimits {
        WriteLimits {
            max_used_percent: 100 - self.reserve_percent,
            ..WriteLimits::default()
        }
    }

    /// Adds to an error for lack of space which setting keeps it free.
    fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        use holdfast_store::Error::NoSpace;
        let is_no_space = error.chain().any(|cause| {
            matches!(cause.downcast_ref(), Some(NoSpace { .. }))
                || matches!(
                    cause.downcast_ref(),
                    Some(archive::Error::Store(NoSpace { .. }))
                )
        });
        if is_no_space {
            let reserve = self.reserve_percent;
            return error.context(format!(
                "the volume keeps {reserve} % free (--reserve-percent)"
            ));
        }
        error
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Imported {
    archive: PathBuf,
    images: Vec<Image>,
    #[serde(flatten)]
    counts: Option<Counts>,
}

#[derive(Serialize)]
struct Image {
    name: String,
    digest: String,
    bytes: u64,
}

/// Imports the archives, one after the other. The first one that is refused ends the run.
pub(crate) async fn run(args: Args) -> ExitCode {
    args.output.apply();
    let result = import(&args).await;
    args.output.finish(result)
}

async fn import(args: &Args) -> anyhow::Result<Document> {
    if args.name.is_some() && args.archives.len() > 1 {
        return Err(Usage("--name names one image: give one archive with it".to_owned()).into());
    }
    // All archives are checked before anything of the first is imported.
    let mut planned = Vec::new();
    for path in &args.archives {
        let mut source = if path == Path::new("-") {
            spooled(&args.data, args.limits()).map_err(|error| args.explained(error))?
        } else {
            open(path)?
        };
        let plan = archive::plan(&mut *source, args.name.as_deref(), &args.platform)
            .with_context(|| path.display().to_string())?;
        planned.push((path, source, plan));
    }
    let store = if args.dry_run {
        None
    } else {
        Some(store(&args.data, args.limits()).await?)
    };
    let (mut done, mut text) = (Vec::new(), String::new());
    for (path, mut source, plan) in planned {
        let taken = take(&mut *source, &plan, store.as_ref()).await;
        if taken.is_err() && args.output.is_table() {
            // What was imported before is reported, too, if a later archive is refused.
            terminal::print(&text);
        }
        let counts = taken
            .map_err(|error| args.explained(error.into()))
            .with_context(|| path.display().to_string())?;
        text.push_str(&render(&plan, counts));
        if args.archives.len() > 1 {
            terminal::note(&format!("{} is done", path.display()));
        }
        done.push(imported(path, &plan, counts));
    }
    let names: Vec<String> = done
        .iter()
        .flat_map(|archive| &archive.images)
        .map(|image| image.name.clone())
        .collect();
    Ok(Document::new("ImportList", Answer::Yes, &done, text)?.with_names(names))
}

fn open(path: &Path) -> anyhow::Result<Box<dyn ArchiveReader>> {
    if path.is_dir() {
        return Ok(Box::new(FolderReader::open(path)));
    }
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    if !file.metadata()?.is_file() {
        bail!(
            "{} is neither a file nor a folder; give - to read standard input",
            path.display()
        );
    }
    let source = TarReader::open(BufReader::with_capacity(64 << 10, file))
        .with_context(|| path.display().to_string())?;
    Ok(Box::new(source))
}

/// Standard input in a file without a name on the volume, the only writable folder of a pod. The
/// file is gone when the process ends, in any way.
fn spooled(data: &Path, limits: WriteLimits) -> anyhow::Result<Box<dyn ArchiveReader>> {
    let path = data.join(format!(".import-{}", std::process::id()));
    let cannot = || format!("cannot keep standard input in {}", data.display());
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(cannot)?;
    std::fs::remove_file(&path).with_context(cannot)?;
    let (disk, gate) = (Disk::at(data), WriteGate::new(data.to_owned(), limits));
    let bar = terminal::spinner();
    let mut input = std::io::stdin().lock();
    let mut kept = 0;
    loop {
        // Other writers of the volume keep their reserve.
        gate.allows(disk.space(data)?, SPOOL_BYTES)?;
        let piece =
            std::io::copy(&mut (&mut input).take(SPOOL_BYTES), &mut file).with_context(cannot)?;
        if piece == 0 {
            break;
        }
        kept += piece;
        bar.set_message(format!("received {}", terminal::size(kept)));
        bar.tick();
    }
    bar.finish_and_clear();
    let source =
        TarReader::open(BufReader::with_capacity(64 << 10, file)).context("standard input")?;
    Ok(Box::new(source))
}

async fn store(data: &Path, write_limits: WriteLimits) -> anyhow::Result<Store> {
    if !data.is_dir() {
        bail!(
            "{} is no folder: make it, or mount the volume, first",
            data.display()
        );
    }
    let options = Options {
        write_limits,
        ..Options::default()
    };
    Store::open(data, options)
        .await
        .with_context(|| format!("cannot open {}", data.display()))
}

/// Imports, or without a store only verifies.
async fn take(
    source: &mut dyn ArchiveReader,
    plan: &Plan,
    store: Option<&Store>,
) -> archive::Result<Option<Counts>> {
    let total: u64 = plan.blobs().values().sum();
    let bar = terminal::bytes(total);
    let result = match store {
        None => archive::verify(source, plan, &mut |bytes| bar.inc(bytes)).map(|()| None),
        Some(store) => {
            let owner = LockHolder {
                address: String::new(),
                id: format!("import-{}", std::process::id()),
            };
            archive::import(source, plan, store, &owner, &mut |bytes| bar.inc(bytes))
                .await
                .map(Some)
        }
    };
    bar.finish_and_clear();
    result
}

fn render(plan: &Plan, counts: Option<Counts>) -> String {
    let mut text = String::new();
    for image in &plan.images {
        writeln!(
            text,
            "{}  {}  {}",
            image.name,
            image.bundle.digest,
            terminal::size(image.bundle.bytes())
        )
        .ok();
    }
    match counts {
        None => writeln!(
            text,
            "{} verified; nothing was changed (--dry-run)",
            terminal::count(plan.images.len() as u64, "image", "images")
        ),
        Some(counts) => writeln!(
            text,
            "{} imported: {} of {} went in, {} of {} were there",
            terminal::count(plan.images.len() as u64, "image", "images"),
            terminal::count(counts.blobs, "blob", "blobs"),
            terminal::size(counts.bytes),
            terminal::count(counts.present, "blob", "blobs"),
            terminal::size(counts.present_bytes),
        ),
    }
    .ok();
    text
}

fn imported(path: &Path, plan: &Plan, counts: Option<Counts>) -> Imported {
    Imported {
        archive: path.to_owned(),
        images: plan
            .images
            .iter()
            .map(|image| Image {
                name: image.name.to_string(),
                digest: image.bundle.digest.to_string(),
                bytes: image.bundle.bytes(),
            })
            .collect(),
        counts,
    }
}
