// Other daemons as a source: who they are, which of them has an image, what is
// remembered of those that failed, and pulling from several at once, chunk by
// chunk against a manifest.
//
// Blocking functions are meant for a worker thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"
#include "pkg/store/ingest.h"
#include "pkg/transfer/options.h"
#include "pkg/transfer/pull.h"
#include "pkg/transfer/source.h"

namespace bim::transfer {

// The first API version whose daemons tell manifests and extents.
inline constexpr int64_t kManifestApiVersion = 4;

struct PeerInfo {
  std::string manager_id;
  std::string ip;  // numeric, of the API's host
  uint16_t data_port = 0;
  int64_t api_version = 0;
};

// Asks another daemon who it is: implemented above, where gRPC is known.
class PeerResolver {
 public:
  virtual ~PeerResolver() = default;
  // Blocks, at most `timeout`. UNAVAILABLE: cannot be reached.
  // FAILED_PRECONDITION: no version in common (naming both ranges), or it is
  // none of ours, or serves no data. `address`: "host:port".
  virtual base::Result<PeerInfo> Resolve(const std::string& address,
                                         std::chrono::milliseconds timeout,
                                         std::stop_token stop) = 0;
};

// What is remembered of peers that failed, for all transfers of this process;
// at most 1,024 of them. Thread-safe.
class PeerBook {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Fault {
    kSoft,  // unreachable, slow: asked last
    kHard   // sent something wrong: not asked at all
  };
  void Penalize(const std::string& address, Fault fault, std::string reason,
                std::chrono::milliseconds first, Clock::time_point now);
  void Forgive(const std::string& address);
  // The fault that still counts, with its reason; nullopt: none.
  std::optional<std::pair<Fault, std::string>> FaultOf(
      const std::string& address, Clock::time_point now) const;

 private:
  struct Entry {
    Fault fault = Fault::kSoft;
    std::string reason;
    std::chrono::milliseconds penalty{0};
    Clock::time_point until;
  };
  mutable std::mutex mutex_;
  std::map<std::string, Entry> entries_;
};

struct PeerQuery {
  std::vector<std::string> addresses;
  store::ImageKey key;
  // What is expected, when it was stated.
  std::optional<base::Digest> sha512;
  std::optional<base::Digest> sha256;
  uint64_t size = 0;
  uint64_t max_size = 0;
};

// A peer as found so far.
struct Peer {
  std::string address;
  std::optional<PeerInfo> info;  // not asked yet
};

struct FoundPeers {
  // What the image is, by the first peer that has it. Null: none has it.
  std::shared_ptr<const store::ImageRecord> manifest;
  std::string manifest_from;  // address
  bool trusted = false;       // that peer is
  // That peer first, then the others to try, in order.
  std::vector<Peer> peers;
  // Why the others do not count: "10.0.0.2:9500: cannot find image ...".
  std::vector<std::string> complaints;
};

// Asks one after the other, trusted ones first, those that failed lately last
// (those that sent something wrong not at all), until one tells a manifest that
// fits; begins with no further one after 60 s. A manifest without chunks, or an
// older peer that tells none, is taken only when no peer has one with them;
// those that failed lately are not asked for one then.
FoundPeers FindPeers(PeerResolver& resolver, PeerBook& book,
                     const PeerQuery& query, const Options& options,
                     std::stop_token stop);

// A file of this node that may share chunks with the one in work.
struct LocalImage {
  base::UniqueFd file;
  store::ImageRecord record;  // chunks loaded
};
// The next candidate, nullopt: no more. Called until everything is found.
using NextLocalImage = std::function<std::optional<LocalImage>()>;

// Fills missing chunks of an ingest that has a reference from files on this
// node: shares blocks where the file system can, else copies; each chunk is
// compared with the reference. What differs, or cannot be read to be copied,
// stays missing. CANCELLED when stopped; otherwise only failures of the disk
// that is written fail it. Shared blocks are on that disk: a failure to share
// them or to read them back is one, too.
base::Status ReuseChunks(store::Ingest& ingest, const NextLocalImage& next,
                         Progress* progress, std::stop_token stop);

struct PeerPullSpec {
  PullSpec pull;  // connections, limiter (of bytes on the wire), progress
  // May be null: nothing is reused.
  NextLocalImage next_local;
  // Called when all bytes are there, before they are published; may be null.
  // Its failure fails the pull.
  std::function<base::Status()> before_commit;
};

// Pulls the image of `found` into an ingest that was opened with its manifest
// as the reference, from all its peers, and commits it. kTransient when no peer
// is left; the message tells of each. kWrong: the manifest, or the image that
// it describes, was found wrong. kDisk: the disk failed; that of a commit may
// leave the file under its name all the same (Ingest::Commit).
PullResult PullFromPeers(PeerResolver& resolver, PeerBook& book,
                         const FoundPeers& found, store::Ingest& ingest,
                         const PeerPullSpec& spec, const Options& options,
                         const std::function<void()>& on_bytes,
                         std::stop_token stop);

// The whole file of a peer that has no manifest of it, as any URL. `peer` was
// asked: its info is set.
std::unique_ptr<Source> MakePlainPeerSource(const Peer& peer,
                                            const store::ImageKey& key,
                                            const Options& options);

// What a validator says of content that a digest names.
std::string ValidatorOf(const base::Digest& sha512);

}  // namespace bim::transfer
