#include "pkg/api/data_server.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pkg/api/data_request.h"
#include "pkg/api/data_upload.h"
#include "pkg/api/image_body.h"
#include "pkg/base/names.h"
#include "pkg/base/status.h"
#include "pkg/compress/encoder.h"
#include "pkg/exec/turns.h"
#include "pkg/io/dir.h"
#include "pkg/io/sparse.h"
#include "pkg/store/record.h"
#include "pkg/transfer/wire.h"

namespace bim::api {
namespace {

// Readers wait for the CPU of this node: fast, not small.
constexpr int kLevel = 1;
constexpr size_t kSample = 64 << 10;
constexpr size_t kSamplePiece = 4 << 10;

std::string EtagOf(const std::string& sha512_hex) {
  return sha512_hex.empty() ? "" : "\"sha512:" + sha512_hex + "\"";
}

void AddDigest(const std::string& sha512_hex, http::Response& response) {
  if (sha512_hex.empty()) return;
  response.headers.emplace_back("X-Bim-Sha512", sha512_hex);
  response.headers.emplace_back("ETag", EtagOf(sha512_hex));
}

// What is served, and how much of it at once.
struct Node {
  manager::Manager& manager;
  // A manifest is up to 2 MiB, in memory.
  std::shared_ptr<exec::Turns> manifests = exec::Turns::Make(16);
};

http::Response ServeData(Node& node, const ImagePath& path,
                         const http::Request& request) {
  const base::Result<Query> query =
      ParseQuery(request.query, {"disk", "encoding"});
  if (!query.ok()) return Failure(query.status());
  const std::string_view encoding = ValueOf(*query, "encoding");
  if (!encoding.empty() && encoding != "zstd") {
    return Failure(base::InvalidArgumentError(
        "encoding in the query: expected zstd, found '" +
        base::Printable(encoding) + "'"));
  }
  base::Result<manager::OpenImage> image =
      node.manager.Open(path.name, path.uuid, ValueOf(*query, "disk"));
  if (!image.ok()) return Failure(image.status());

  const bool is_get = request.method == "GET";
  const bool as_file = !encoding.empty();
  const bool encoded =
      as_file || (is_get && request.range.empty() &&
                  AcceptsZstd(ListField(request, "accept-encoding")));
  http::Response response;
  response.content_type =
      as_file ? "application/zstd" : "application/octet-stream";
  AddDigest(image->sha512_hex, response);
  if (!as_file) response.headers.emplace_back("Vary", "Accept-Encoding");
  if (is_get) {
    response.turns = image->turns;
    response.rate = image->rate;
  }
  if (!encoded) {
    SendImageFile(std::move(image->fd), image->stamp, response);
    return response;
  }
  if (!as_file) response.headers.emplace_back("Content-Encoding", "zstd");
  // The frame's bytes may differ from one version of the library to the next,
  // and a range of the file must never be asked for by this tag.
  for (auto& [name, value] : response.headers) {
    if (name == "ETag") value.insert(0, "W/");
  }
  response.maker = MakeEncodedBody(std::move(image->fd), image->stamp,
                                   compress::MakeZstdEncoder(kLevel));
  return response;
}

http::Response ManifestOf(manager::Manager& manager, const std::string& name,
                          const std::string& uuid) {
  const base::Result<store::ImageRecord> record = manager.Manifest(name, uuid);
  if (!record.ok()) return Failure(record.status());
  http::Response response;
  response.content_type = transfer::kManifestType;
  AddDigest(record->sha512.Hex(), response);
  response.body = store::EncodeManifest(*record);
  return response;
}

http::Response ServeManifest(Node& node, const ImagePath& path,
                             const http::Request& request) {
  if (const auto query = ParseQuery(request.query, {}); !query.ok()) {
    return Failure(query.status());
  }
  const std::string name(path.name), uuid(path.uuid);
  if (request.method != "GET") return ManifestOf(node.manager, name, uuid);
  http::Response response;
  response.turns = node.manifests;
  response.later = [&manager = node.manager, name, uuid] {
    return ManifestOf(manager, name, uuid);
  };
  return response;
}

// Whether the data of the table gets clearly smaller, by a sample of it.
base::Result<bool> GetsSmaller(int fd, const transfer::ExtentTable& table,
                               uint64_t data_bytes) {
  std::vector<std::byte> sample(
      static_cast<size_t>(std::min<uint64_t>(kSample, data_bytes)));
  const uint64_t pieces = (sample.size() + kSamplePiece - 1) / kSamplePiece;
  size_t filled = 0;
  uint64_t before = 0;  // data bytes of the extents before the current one
  auto extent = table.data.begin();
  for (uint64_t i = 0; i < pieces; ++i) {
    // The i-th piece begins at the same share of the data.
    const uint64_t at = data_bytes / pieces * i;
    while (at - before >= extent->end - extent->begin) {
      before += extent->end - extent->begin;
      ++extent;
    }
    const uint64_t offset = extent->begin + (at - before);
    const size_t take = static_cast<size_t>(std::min<uint64_t>(
        {kSamplePiece, sample.size() - filled, extent->end - offset}));
    BIM_RETURN_IF_ERROR(
        ReadImageFile(fd, sample.data() + filled, take, offset));
    filled += take;
  }
  sample.resize(filled);
  const std::string compressed = compress::CompressZstd(sample, kLevel);
  return !compressed.empty() && compressed.size() * 5 < sample.size() * 4;
}

// The whole answer compressed, or empty when that does not pay.
base::Result<std::string> CompressPart(int fd,
                                       const transfer::ExtentTable& table,
                                       const std::string& head) {
  uint64_t data_bytes = 0;
  for (const io::Extent& extent : table.data) {
    data_bytes += extent.end - extent.begin;
  }
  if (data_bytes == 0) return std::string();
  BIM_ASSIGN_OR_RETURN(const bool smaller, GetsSmaller(fd, table, data_bytes));
  if (!smaller) return std::string();
  std::string plain = head;
  for (const io::Extent& extent : table.data) {
    const size_t begin = plain.size();
    const size_t length = static_cast<size_t>(extent.end - extent.begin);
    plain.resize(begin + length);
    BIM_RETURN_IF_ERROR(
        ReadImageFile(fd, plain.data() + begin, length, extent.begin));
  }
  return compress::CompressZstd(std::as_bytes(std::span(plain)), kLevel);
}

struct WantedPart {
  uint64_t begin = 0;
  uint64_t end = 0;
  bool with_data = true;  // else the head alone
  bool zstd = false;      // accepted
};

http::Response PartOf(manager::OpenImage image, const WantedPart& part) {
  if (const base::Status same = CheckImageFile(image.fd.get(), image.stamp);
      !same.ok()) {
    return Failure(same);
  }
  const base::Result<transfer::ExtentTable> table =
      transfer::MapExtents(image.fd.get(), part.begin, part.end);
  if (!table.ok()) return Failure(table.status());

  http::Response response;
  response.content_type = transfer::kExtentsType;
  AddDigest(image.sha512_hex, response);
  response.headers.emplace_back("Vary", "Accept-Encoding");
  response.body = transfer::EncodeExtentTable(*table);
  if (part.with_data) {
    response.rate = image.rate;
    if (part.zstd && part.end - part.begin <= transfer::kMaxCompressedPart) {
      base::Result<std::string> compressed =
          CompressPart(image.fd.get(), *table, response.body);
      if (!compressed.ok()) return Failure(compressed.status());
      if (!compressed->empty()) {
        response.headers.emplace_back("Content-Encoding", "zstd");
        response.body = *std::move(compressed);
        return response;
      }
    }
  }
  // Without parts a file would be sent whole.
  if (table->data.empty()) return response;
  for (const io::Extent& extent : table->data) {
    response.parts.push_back({extent.begin, extent.end});
  }
  SendImageFile(std::move(image.fd), image.stamp, response);
  return response;
}

http::Response ServeExtents(Node& node, const ImagePath& path,
                            const http::Request& request) {
  const base::Result<Query> query =
      ParseQuery(request.query, {"begin", "end", "disk"});
  if (!query.ok()) return Failure(query.status());
  const std::optional<uint64_t> begin = ParseNumber(ValueOf(*query, "begin"));
  const std::optional<uint64_t> end = ParseNumber(ValueOf(*query, "end"));
  if (!begin || !end) {
    return Failure(base::InvalidArgumentError(
        "the query has no begin and end: expected both, in bytes"));
  }
  base::Result<manager::OpenImage> image =
      node.manager.Open(path.name, path.uuid, ValueOf(*query, "disk"));
  if (!image.ok()) return Failure(image.status());
  const std::string etag = EtagOf(image->sha512_hex);
  if (const std::string wanted = ListField(request, "if-match");
      !wanted.empty() && !Matches(wanted, etag)) {
    return Failure(412, "the image is another one: its ETag is " + etag);
  }
  if (*begin >= *end || *end > image->stamp.size ||
      *end - *begin > transfer::kMaxPart) {
    return Failure(base::InvalidArgumentError(
        "the part from " + std::to_string(*begin) + " to " +
        std::to_string(*end) + ": expected begin < end <= " +
        std::to_string(image->stamp.size) + " (the size) and at most " +
        std::to_string(transfer::kMaxPart) + " bytes"));
  }
  WantedPart part{*begin, *end};
  part.with_data = request.method == "GET";
  part.zstd = AcceptsZstd(ListField(request, "accept-encoding"));
  if (!part.with_data) return PartOf(*std::move(image), part);
  http::Response response;
  response.turns = image->turns;
  // Made once: what it needs is moved into the answer.
  response.later =
      [part, open = std::make_shared<manager::OpenImage>(*std::move(image))] {
        return PartOf(std::move(*open), part);
      };
  return response;
}

http::Response WrongMethod(const std::string& allowed) {
  http::Response response =
      Failure(405, "expected one of the methods " + allowed);
  response.headers.emplace_back("Allow", allowed);
  return response;
}

struct Resource {
  std::string_view name;
  http::Response (*serve)(Node&, const ImagePath&, const http::Request&);
  bool is_read = true;
};
constexpr std::array<Resource, 4> kResources{{
    {"data", ServeData},
    {"manifest", ServeManifest},
    {"extents", ServeExtents},
    {"upload",
     [](Node& node, const ImagePath& path, const http::Request& request) {
       return ServeUpload(node.manager, path, request);
     },
     /*is_read=*/false},
}};

http::Response Serve(Node& node, const http::Request& request) {
  const bool reads = request.method == "GET" || request.method == "HEAD";
  if (request.path == "/healthz") {
    return reads ? http::Response{.body = "ok\n"} : WrongMethod("GET, HEAD");
  }
  if (const auto path = ParseImagePath(request.path)) {
    for (const Resource& resource : kResources) {
      if (path->resource != resource.name) continue;
      if (resource.is_read && !reads) return WrongMethod("GET, HEAD");
      if (!resource.is_read && request.method != "HEAD" &&
          request.method != "PUT" && request.method != "PATCH") {
        return WrongMethod("HEAD, PUT, PATCH");
      }
      return resource.serve(node, *path, request);
    }
  }
  return Failure(base::NotFoundError(
      "cannot find this path: expected /v1/images/<name>/<uuid>/ and data, "
      "manifest, extents or upload"));
}

}  // namespace

http::Handler DataHandler(manager::Manager& manager) {
  return [node = std::make_shared<Node>(Node{manager})](
             const http::Request& request) { return Serve(*node, request); };
}

}  // namespace bim::api
