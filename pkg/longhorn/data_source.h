// The HTTP service of a data source: the process that makes the first file of
// an image, <disk>/tmp/<name>-<uuid>, beside the daemon that owns the disk.
// This is its reference.
//
//   GET /v1/file                          FileInfo, with sourceType, parameters
//                                         and name; "ready" is shown as
//                                         "ready-for-transfer" until
//                                         transferred
//   POST /v1/file?action=upload&size=N    the bytes, as part `chunk` of a
//                                         multipart body, when it is an upload
//   POST /v1/file?action=transfer         lets go of the complete file, which
//                                         stays; again: the same answer
//
// Failures are a line of text, as of the file service.
//
// Thread-safety: Make, Begin and the destructor on one thread; the handler on
// many.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>

#include "pkg/base/status.h"
#include "pkg/http/server.h"
#include "pkg/manager/manager.h"

namespace bim::longhorn {

class DataSource {
 public:
  struct Options {
    manager::DirectedSpec spec;  // what is to be made
    std::string type;            // "download", ...
    std::map<std::string, std::string> parameters;
    std::string file_path;  // of the file, absolute
    // Work (an upload, too) that has not begun by then fails.
    std::chrono::milliseconds begin_timeout{60'000};
  };
  // `manager` was made with Options::data_source, and outlives this and the
  // handler.
  static std::unique_ptr<DataSource> Make(Options options,
                                          manager::Manager& manager);
  virtual ~DataSource() = default;
  // Registers the file and begins to make it; a failure is shown by the
  // service. Blocks.
  virtual void Begin() = 0;
  // Blocks. Refers to this object.
  virtual http::Handler Handler() = 0;
};

}  // namespace bim::longhorn
