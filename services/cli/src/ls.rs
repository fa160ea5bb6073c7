//! `holdfast ls`: what a volume holds, read from the volume itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use holdfast_cli_kit::exit_status::Answer;
use holdfast_cli_kit::output::{Document, OutputArgs};
use holdfast_cli_kit::sort::SortArgs;
use holdfast_cli_kit::terminal;
use holdfast_core::digest::Digest;
use holdfast_core::oci::Platform;
use holdfast_core::reference::RepositoryName;
use holdfast_store::View;
use holdfast_volume_tools::archive::{self, Bundle, Name};
use serde::Serialize;

/// Largest configuration of an image that is read for its platform.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Characters of a digest in a table.
const SHOWN_DIGEST: usize = 19;

/// Arguments of `ls`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  holdfast ls --data /var/lib/holdfast --sort-by .bytes
  holdfast ls --data /var/lib/holdfast docker.io/library/nginx
  holdfast ls --data /var/lib/holdfast --tags -o json

Exit status: 0 listed, 2 it could not run.")]
pub struct Args {
    /// Data folder of the registry (rootdirectory of distribution)
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Only this repository, with its tags
    #[arg(value_name = "REPOSITORY")]
    repository: Option<String>,
    /// The tags of every repository, with digest, size and platforms; --sort-by sorts the
    /// repositories, and the tags of each
    #[arg(long)]
    tags: bool,
    #[command(flatten)]
    sort: SortArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Repository {
    name: String,
    /// Bytes of what its tags need, each content once.
    bytes: u64,
    tags: Vec<Tag>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Tag {
    name: String,
    /// The name under which an export gives it out.
    image: String,
    digest: Option<Digest>,
    media_type: Option<String>,
    /// Bytes of the image, of an index those of all its images that are there.
    bytes: u64,
    platforms: Vec<String>,
    /// Platforms that an index lists and the volume does not have.
    absent: Vec<String>,
    /// What keeps it from being pulled.
    problem: Option<String>,
}

/// Lists the volume.
pub(crate) fn run(args: &Args) -> ExitCode {
    args.output.apply();
    args.output.finish(list(args))
}

fn list(args: &Args) -> anyhow::Result<Document> {
    let view = open(&args.data)?;
    let names = match &args.repository {
        Some(text) => vec![find(&view, text)?],
        None => view.repositories()?,
    };
    let line = terminal::spinner();
    let mut repositories = Vec::new();
    for name in &names {
        line.set_message(name.to_string());
        line.tick();
        repositories.push(repository(&view, name)?);
    }
    line.finish_and_clear();
    let with_tags = args.tags || args.repository.is_some();
    args.sort.sort_with(&mut repositories, |repository| {
        with_tags.then_some(&mut repository.tags)
    })?;
    let table = if with_tags {
        tag_table(&repositories)
    } else {
        repository_table(&repositories)
    };
    let tags = repositories.iter().flat_map(|repository| &repository.tags);
    let names: Vec<String> = if with_tags {
        tags.map(|tag| tag.image.clone()).collect()
    } else {
        repositories
            .iter()
            .map(|repository| repository.name.clone())
            .collect()
    };
    Ok(Document::new("RepositoryList", Answer::Yes, &repositories, table)?.with_names(names))
}

/// Opens a volume to read from.
pub(crate) fn open(data: &std::path::Path) -> anyhow::Result<View> {
    View::open(data).with_context(|| {
        format!(
            "{} holds no registry: docker/registry/v2 is expected below it (distribution's rootdirectory)",
            data.display()
        )
    })
}

/// The repository of this name, by its local or its upstream's name.
fn find(view: &View, text: &str) -> anyhow::Result<RepositoryName> {
    let all = view.repositories()?;
    archive::local(text)
        .into_iter()
        .map(|name| name.repository)
        .find(|repository| all.contains(repository))
        .with_context(|| {
            format!("there is no repository {text}; `holdfast ls` without a name lists all")
        })
}

fn repository(view: &View, name: &RepositoryName) -> anyhow::Result<Repository> {
    let mut tags = Vec::new();
    let mut contents: BTreeMap<Digest, u64> = BTreeMap::new();
    for (tag, digest) in view.tags(name)? {
        let image = archive::original(&Name {
            repository: name.clone(),
            tag: Some(tag.clone()),
            digest: None,
        });
        let mut entry = Tag {
            name: tag.to_string(),
            image,
            digest: digest.clone(),
            media_type: None,
            bytes: 0,
            platforms: Vec::new(),
            absent: Vec::new(),
            problem: None,
        };
        match digest
            .map(|digest| Bundle::collect(&mut archive::in_repository(view, name), &digest, &[]))
        {
            None => entry.problem = Some("the tag names nothing; see holdfast fsck".to_owned()),
            Some(Err(error)) => entry.problem = Some(format!("{error}; see holdfast fsck")),
            Some(Ok(bundle)) => {
                entry.bytes = bundle.bytes();
                entry.platforms = platforms(view, &bundle);
                entry.absent = bundle
                    .left_out
                    .iter()
                    .filter_map(|child| child.platform.as_ref())
                    .filter(|platform| !platform.is_unknown())
                    .map(ToString::to_string)
                    .collect();
                for (digest, bytes) in &bundle.manifests {
                    contents.insert(digest.clone(), bytes.len() as u64);
                }
                contents.extend(bundle.blobs);
                entry.media_type = Some(bundle.media_type);
            }
        }
        tags.push(entry);
    }
    Ok(Repository {
        name: name.to_string(),
        bytes: contents.values().sum(),
        tags,
    })
}

/// The platforms of the images that are there: from the index, of a single image from its
/// configuration.
fn platforms(view: &View, bundle: &Bundle) -> Vec<String> {
    let listed: Vec<String> = bundle
        .platforms
        .iter()
        .filter(|platform| !platform.is_unknown())
        .map(ToString::to_string)
        .collect();
    if !listed.is_empty() {
        return listed;
    }
    let config = bundle
        .config
        .as_ref()
        .and_then(|config| view.read_blob(config, MAX_CONFIG_BYTES).ok().flatten());
    config
        .and_then(|bytes| serde_json::from_slice::<Platform>(&bytes).ok())
        .filter(|platform| !platform.is_unknown())
        .map(|platform| platform.to_string())
        .into_iter()
        .collect()
}

fn repository_table(repositories: &[Repository]) -> String {
    let rows: Vec<_> = repositories
        .iter()
        .map(|repository| {
            [
                repository.name.clone(),
                repository.tags.len().to_string(),
                terminal::size(repository.bytes),
            ]
        })
        .collect();
    terminal::table(["REPOSITORY", "TAGS", "SIZE"], &rows)
}

fn tag_table(repositories: &[Repository]) -> String {
    let tags = repositories.iter().flat_map(|repository| &repository.tags);
    let rows: Vec<_> = tags
        .map(|tag| {
            let digest = tag.digest.as_ref().map_or("", Digest::as_str);
            let mut platforms = tag.platforms.join(", ");
            if !tag.absent.is_empty() {
                platforms = format!("{platforms} (not copied: {})", tag.absent.join(", "));
            }
            [
                tag.image.clone(),
                digest.chars().take(SHOWN_DIGEST).collect(),
                terminal::size(tag.bytes),
                tag.problem.clone().unwrap_or(platforms),
            ]
        })
        .collect();
    terminal::table(["IMAGE", "DIGEST", "SIZE", "PLATFORMS"], &rows)
}
