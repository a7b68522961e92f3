// The file names of Longhorn's HTTP service and what they stand for: only
// places that the layout of a disk has for images. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/store/layout.h"

namespace bim::longhorn {

// Where a disk is seen: by ourselves, and by those who see it as "/data".
struct DiskRoots {
  std::vector<std::string> paths;  // absolute
};

// The directory part "<name>-<uuid>" of a file of an image,
// "<root>/backing-images/<name>-<uuid>/backing". INVALID_ARGUMENT for every
// other text: nothing is normalised, so there is one way to write each path.
base::Result<std::string> ParseImagePath(std::string_view path,
                                         const DiskRoots& roots);
// The same of a data source's file, "<root>/tmp/<name>-<uuid>".
base::Result<std::string> ParseTmpPath(std::string_view path,
                                       const DiskRoots& roots);

// Which image's directory it is, when the uuid is known. INVALID_ARGUMENT: it
// does not end with it, or what is left is no name.
base::Result<store::ImageKey> KeyOfDirectory(std::string_view directory,
                                             std::string_view uuid);

}  // namespace bim::longhorn
