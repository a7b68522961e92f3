#include "pkg/longhorn/file_path.h"

#include "pkg/base/names.h"

namespace bim::longhorn {

using base::Result;

namespace {

// "<root>/<folder>/<directory><suffix>"
Result<std::string> Parse(std::string_view path, const DiskRoots& roots,
                          std::string_view folder, std::string_view suffix,
                          std::string_view shape) {
  for (std::string_view root : roots.paths) {
    while (root.ends_with('/')) root.remove_suffix(1);
    std::string_view rest = path;
    if (!rest.starts_with(root)) continue;
    rest.remove_prefix(root.size());
    if (!rest.starts_with(folder)) continue;
    rest.remove_prefix(folder.size());
    if (!rest.ends_with(suffix)) continue;
    rest.remove_suffix(suffix.size());
    // Two names with a "-" between them: where it stands is not known.
    bool allowed = false;
    for (size_t dash = rest.find('-'); dash != rest.npos && !allowed;
         dash = rest.find('-', dash + 1)) {
      allowed = base::CheckName(rest.substr(0, dash), "name").ok() &&
                base::CheckName(rest.substr(dash + 1), "uuid").ok();
    }
    if (!allowed || rest.find("..") != rest.npos) continue;
    return std::string(rest);
  }
  return base::InvalidArgumentError(
      "expected the path of a file of this disk, " +
      (roots.paths.empty() ? std::string() : roots.paths.front()) +
      std::string(shape) + ", found '" + base::Printable(path, 200) + "'");
}

}  // namespace

Result<std::string> ParseImagePath(std::string_view path,
                                   const DiskRoots& roots) {
  return Parse(path, roots, "/backing-images/", "/backing",
               "/backing-images/<name>-<uuid>/backing");
}

Result<std::string> ParseTmpPath(std::string_view path,
                                 const DiskRoots& roots) {
  return Parse(path, roots, "/tmp/", "", "/tmp/<name>-<uuid>");
}

Result<store::ImageKey> KeyOfDirectory(std::string_view directory,
                                       std::string_view uuid) {
  BIM_RETURN_IF_ERROR(base::CheckName(uuid, "uuid"));
  const std::string suffix = "-" + std::string(uuid);
  if (!directory.ends_with(suffix)) {
    return base::InvalidArgumentError(
        "expected a path with the directory <name>-<uuid> and uuid '" +
        std::string(uuid) + "', found '" + base::Printable(directory) + "'");
  }
  directory.remove_suffix(suffix.size());
  BIM_RETURN_IF_ERROR(base::CheckName(directory, "name"));
  return store::ImageKey{std::string(directory), std::string(uuid)};
}

}  // namespace bim::longhorn
