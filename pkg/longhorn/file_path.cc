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
    // Two names and the "-" between them, each at most kMaxNameLength.
    if (rest.size() > 2 * base::kMaxNameLength + 1 ||
        rest.find('-') == std::string_view::npos) {
      continue;
    }
    bool allowed = !rest.empty() && rest.find("..") == std::string_view::npos;
    for (const char c : rest) {
      allowed = allowed &&
                ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                 (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-');
    }
    const char first = rest.empty() ? '-' : rest.front();
    if (!allowed || first == '-' || first == '.' || first == '_') continue;
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
