// Longhorn's HTTP service for files by path, on the manager's directed copies.
// This is its reference; `{id}` is the percent-encoded path of a file, which is
// the place of an image on a disk of this node (file_path.h) and nothing else.
//
//   GET /v1/files                       JSON: path -> FileInfo (file_info.h)
//   GET /v1/files/{id}                  FileInfo
//   DELETE /v1/files/{id}               unregister, delete; 200 also if unknown
//   POST /v1/files/{id}?action=forget   unregister, keep the file
//   POST /v1/files/{id}?action=sendToPeer&to-address=H:P
//   GET, HEAD /v1/files/{id}/download   gzip; with forV2Creation=true the bytes
//                                       as they are, with ranges
//   POST /v1/files?action=A             registers a file and begins to make it:
//     all: uuid, disk-uuid, file-path, [expected-checksum], [size],
//     [data-engine=v1|v2]; v2 makes a raw file of a qcow2 one
//     downloadFromURL: url; upload: size, the data is part `chunk` of a
//     multipart body; receiveFromPeer: port, [file-type=raw|qcow2];
//     fetch: src-file-path, and dst-file-path in place of file-path;
//     cloneFromBackingImage: backing-image, backing-image-uuid,
//     [encryption=ignore]; restoreFromBackupURL: refused
//
// Failures are a line of text: 404 for a file that is not registered, 400 for
// what the caller did wrong, else 500.
#pragma once

#include <string>

#include "pkg/http/server.h"
#include "pkg/manager/manager.h"

namespace bim::longhorn {

struct FileServiceOptions {
  // Files of a data source, <disk>/tmp/<name>-<uuid>, in place of images.
  bool data_source = false;
};

// Answers paths that begin with /v1/files. Blocks: it runs on the server's
// workers. `manager` outlives the handler and what its responses hold.
http::Handler FileService(manager::Manager& manager,
                          FileServiceOptions options);
bool IsFileServicePath(const http::Request& request);

// The line of text that answers a failure.
http::Response HttpFailure(const base::Status& status);

// Takes the data of a multipart request into a directed copy whose source is an
// upload of `size` bytes, and answers 200 with nothing. `disk`: uuid or path.
http::Response ServeUpload(manager::Manager& manager, const std::string& disk,
                           const store::ImageKey& key, uint64_t size,
                           const http::Request& request);

}  // namespace bim::longhorn
