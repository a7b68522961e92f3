// What the manager tells about images and disks: plain values.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pkg/base/digest.h"
#include "pkg/store/handover.h"
#include "pkg/transfer/push_requester.h"

namespace bim::manager {

// The words of the contract, in the order of Image.state's precedence below.
enum class CopyState {
  kPending,
  kStarting,
  kInProgress,
  kReady,
  kFailed,
  kUnknown,
};
// "pending", "starting", "in-progress", "ready", "failed", "unknown".
std::string_view CopyStateName(CopyState state);

struct SourceSpec {
  std::string url;
  std::string credential;          // a name, see transfer::CredentialStore
  std::vector<std::string> peers;  // "host:port" of other daemons' API
  bool upload = false;             // the bytes are brought by HTTP
  // Of directed copies only, and not kept through a restart:
  // Somebody pushes them (transfer/push_receiver.h) to this port.
  uint16_t receive_port = 0;
  // Who is asked to do that.
  std::optional<transfer::VolumeExport> volume;
  // Another image on the same disk, copied as it is.
  std::string clone_name, clone_uuid;
  // The file that a data source gave up, which has to be read first.
  bool data_source = false;
  // "raw" or "qcow2": what comes is converted to that, unless it is that.
  std::string convert;
  friend bool operator==(const SourceSpec&, const SourceSpec&) = default;
};

// What is wanted. `disks` holds uuids (requests may name paths; the manager
// resolves them); empty with all_disks.
struct ImageSpec {
  std::string name;
  std::string uuid;
  SourceSpec source;
  std::optional<base::Digest> sha512;  // expected, of the stored file
  std::optional<base::Digest> sha256;
  std::vector<std::string> disks;
  bool all_disks = false;
  uint64_t size = 0;  // bytes, 0: not stated
  // Directed copy by copy (directed.h): source, size and digest are those of
  // each copy, and `disks` those that have one.
  bool directed = false;
  friend bool operator==(const ImageSpec&, const ImageSpec&) = default;
};

enum class VerifyState { kNever, kRunning, kOk, kFailed };

// An image on one disk.
struct CopyStatus {
  std::string disk_uuid;
  std::string disk_path;
  CopyState state = CopyState::kPending;
  std::string message;
  uint32_t progress = 0;         // 0-100
  uint64_t processed_bytes = 0;  // of the file, holes included
  uint64_t real_size = 0;        // allocated bytes when ready
  std::string file_path;         // absolute
  std::optional<std::chrono::system_clock::time_point> next_attempt;
  uint32_t attempts = 0;  // since the last success
  VerifyState verify = VerifyState::kNever;
  uint32_t verify_progress = 0;  // 0-100
  std::optional<std::chrono::system_clock::time_point> verified_at;
  std::string origin;
  uint64_t wire_bytes = 0;    // received over the network, as encoded
  uint64_t reused_bytes = 0;  // taken from other images on this node
  std::string encoding;       // of the source: "gzip", "xz", "zstd", or empty
  uint64_t encoded_size = 0;  // of what the source sends; 0: not known
  bool sha512_pending = false;
};

struct ImageStatus {
  ImageSpec spec;
  CopyState state = CopyState::kPending;
  std::string message;
  std::vector<CopyStatus> copies;  // by disk path
  std::string format;              // empty until a copy is ready
  uint64_t size = 0;
  uint64_t virtual_size = 0;
  uint64_t real_size = 0;
  std::optional<base::Digest> current_sha512;
  std::optional<base::Digest> current_sha256;
  uint64_t revision = 0;
};

struct DiskStatus {
  std::string uuid;
  std::string path;
  std::string state;  // as of store::DiskStateName
  std::string message;
  uint64_t total_bytes = 0;
  uint64_t available_bytes = 0;
  uint64_t epoch = 0;
  uint32_t images = 0;
  int64_t format_version = 0;  // of its layout; 0 until owned
  bool compatible = false;     // that is older than this program's
  // What was agreed about it; of a disk that waits for that.
  std::optional<store::HandoverRecord> handover;
};

// What a look at one directory of images on a disk has shown.
struct AdoptedImage {
  std::string directory;   // its name
  std::string name, uuid;  // empty: they cannot be told
  bool known = false;      // to this manager, before
  // OK: adopted (or would be); else why not. The file is left alone then.
  base::Status status;
};

struct VerifyProgress {
  uint64_t verified_bytes = 0;
  uint64_t total_bytes = 0;
  bool done = false;
  bool ok = false;
  std::string message;
  uint64_t repaired_chunks = 0;
};

// What may be changed while running; rates in bytes a second, 0: no limit.
struct Limits {
  uint64_t download_rate = 0;
  uint64_t peer_rate = 0;
  uint64_t background_read_rate = 0;
  uint32_t transfers = 8;
  uint32_t transfers_per_disk = 4;
  friend bool operator==(const Limits&, const Limits&) = default;
};
inline constexpr uint64_t kMinRate = 65'536;
inline constexpr uint32_t kMaxTransfers = 256;

struct Event {
  enum class Type { kSnapshotBegin, kImage, kSnapshotEnd, kRemoved };
  Type type = Type::kImage;
  ImageStatus image;  // for kRemoved only spec.name and spec.uuid
  std::string resume_token;
};

}  // namespace bim::manager
