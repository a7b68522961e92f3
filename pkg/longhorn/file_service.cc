#include "pkg/longhorn/file_service.h"

#include <array>
#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "pkg/api/image_body.h"
#include "pkg/base/names.h"
#include "pkg/compress/encoder.h"
#include "pkg/http/client.h"
#include "pkg/http/listen.h"
#include "pkg/longhorn/file_info.h"
#include "pkg/longhorn/file_path.h"
#include "pkg/longhorn/form.h"
#include "pkg/longhorn/multipart.h"

namespace bim::longhorn {
namespace {

using base::Code;
using base::Result;
using base::Status;

constexpr std::string_view kFiles = "/v1/files";
constexpr std::string_view kDownload = "/download";
constexpr char kContainerRoot[] = "/data";
// Readers wait for the CPU of this node: fast, not small.
constexpr int kGzipLevel = 1;
// How long an upload waits until a file that lies there is judged.
constexpr std::chrono::seconds kReuseTimeout{600};
constexpr std::chrono::milliseconds kReuseLook{50};

http::Response Answer(const Status& status) {
  return status.ok() ? http::Response{} : HttpFailure(status);
}

// The data of an upload's multipart body, on its way into a copy.
class ChunkTaker final : public http::BodyTaker {
 public:
  ChunkTaker(std::unique_ptr<manager::Upload> upload, uint64_t size)
      : upload_(std::move(upload)), size_(size) {}
  // The sink refers to this object.
  Status Begin(std::string_view content_type) {
    BIM_ASSIGN_OR_RETURN(
        MultipartReader reader,
        MultipartReader::Make(
            content_type, "chunk",
            [this](std::span<const std::byte> data) { return Take(data); }));
    reader_.emplace(std::move(reader));
    return base::OkStatus();
  }

  Status OnData(std::span<const std::byte> data) override {
    return reader_->Add(data);
  }

  http::Response Finish(const Status& status) override {
    // Broken off when it goes without Finish: then the copy has failed.
    const std::unique_ptr<manager::Upload> upload = std::move(upload_);
    Status ended = status;
    if (ended.ok()) ended = reader_->End();
    // A form that ends well may still lack bytes: the upload tells.
    if (ended.ok()) ended = upload->Finish(true).status();
    if (!ended.ok()) upload->Break(ended);
    return Answer(ended);
  }

 private:
  Status Take(std::span<const std::byte> data) {
    if (data.size() > size_ - came_) {
      return base::InvalidArgumentError("part chunk: expected " +
                                        std::to_string(size_) +
                                        " bytes, as the size says, found more");
    }
    came_ += data.size();
    return upload_->Append(data);
  }

  std::unique_ptr<manager::Upload> upload_;
  const uint64_t size_;
  uint64_t came_ = 0;
  std::optional<MultipartReader> reader_;
};

class Service {
 public:
  Service(manager::Manager& manager, FileServiceOptions options)
      : manager_(manager), options_(options) {}

  http::Response Serve(const http::Request& request) const {
    const auto form = Form::Parse(request.query);
    if (!form.ok()) return HttpFailure(form.status());
    std::string_view raw = request.raw_path;
    if (!raw.starts_with(kFiles)) {
      return HttpFailure(base::InvalidArgumentError(
          "the path is badly encoded: expected " + std::string(kFiles)));
    }
    raw.remove_prefix(kFiles.size());
    const bool reads = request.method == "GET" || request.method == "HEAD";
    const bool download = raw.ends_with(kDownload);
    if (download) raw.remove_suffix(kDownload.size());
    const auto decoded = DecodeQuery(raw);
    if (!decoded) {
      return HttpFailure(
          base::InvalidArgumentError("the file's path is badly encoded"));
    }
    std::string_view id = *decoded;
    if (!download && (id.empty() || id == "/")) {
      if (reads) return List();
      if (request.method == "POST") return Make(*form, request);
      return WrongMethod("GET, HEAD, POST");
    }
    if (id.starts_with('/')) id.remove_prefix(1);
    if (download) {
      if (!reads) return WrongMethod("GET, HEAD");
      return Download(id, *form, request);
    }
    if (reads) return Get(id);
    if (request.method == "DELETE") return Delete(id);
    if (request.method == "POST") return Act(id, *form);
    return WrongMethod("DELETE, GET, HEAD, POST");
  }

 private:
  // A file of a disk: which, and its name there.
  struct Place {
    std::string disk;  // uuid
    std::string directory;
  };

  static http::Response WrongMethod(const std::string& allowed) {
    http::Response response;
    response.status = 405;
    response.headers.emplace_back("Allow", allowed);
    response.body = "expected one of the methods " + allowed + "\n";
    return response;
  }

  Result<Place> PlaceOf(std::string_view path, bool data_source) const {
    const auto disks = manager_.ListDisks();
    Status refused;
    for (const manager::DiskStatus& disk : disks) {
      DiskRoots roots{{disk.path}};
      if (disks.size() == 1) roots.paths.emplace_back(kContainerRoot);
      auto directory =
          data_source ? ParseTmpPath(path, roots) : ParseImagePath(path, roots);
      if (directory.ok() && disk.uuid.empty()) {
        return base::UnavailableError("disk at " + disk.path +
                                      " cannot be used: " + disk.message);
      }
      if (directory.ok()) return Place{disk.uuid, *std::move(directory)};
      if (refused.ok()) refused = directory.status();
    }
    return disks.empty() ? base::UnavailableError("this node has no disks")
                         : refused;
  }

  Result<std::optional<manager::DirectedStatus>> Find(
      std::string_view path) const {
    BIM_ASSIGN_OR_RETURN(const Place place,
                         PlaceOf(path, options_.data_source));
    std::optional<manager::DirectedStatus> found;
    BIM_RETURN_IF_ERROR(manager_.VisitDirected(
        place.disk, [&](const manager::DirectedStatus& image) {
          if (image.name + "-" + image.uuid == place.directory) found = image;
        }));
    return found;
  }
  Result<manager::DirectedStatus> Need(std::string_view path) const {
    BIM_ASSIGN_OR_RETURN(auto found, Find(path));
    if (!found) {
      return base::NotFoundError("cannot find file " +
                                 base::Printable(path, 300));
    }
    return *std::move(found);
  }

  http::Response List() const {
    auto files = nlohmann::ordered_json::object();
    for (const manager::DiskStatus& disk : manager_.ListDisks()) {
      if (disk.uuid.empty()) continue;  // it was never seen
      const base::Status visited = manager_.VisitDirected(
          disk.uuid, [&](const manager::DirectedStatus& image) {
            files[image.copy.file_path] = FileInfo(image, image.copy.file_path);
          });
      if (!visited.ok()) return HttpFailure(visited);
    }
    return Json(files);
  }

  http::Response Get(std::string_view path) const {
    const auto image = Need(path);
    if (!image.ok()) return HttpFailure(image.status());
    return Json(FileInfo(*image, image->copy.file_path));
  }

  http::Response Delete(std::string_view path) const {
    const auto image = Find(path);
    if (!image.ok()) return HttpFailure(image.status());
    if (!*image) return {};
    return Answer(manager_.RemoveDirected((*image)->copy.disk_uuid,
                                          (*image)->name, (*image)->uuid));
  }

  http::Response Act(std::string_view path, const Form& form) const {
    const auto action = form.Need("action");
    if (!action.ok()) return HttpFailure(action.status());
    if (*action != "forget" && *action != "sendToPeer") {
      return HttpFailure(UnknownAction(*action, "forget or sendToPeer"));
    }
    const bool send = *action == "sendToPeer";
    const auto to = send ? form.Need("to-address") : Result<std::string>("");
    if (!to.ok()) return HttpFailure(to.status());
    if (const auto parsed = http::ParseHostPort(*to); send && !parsed.ok()) {
      return HttpFailure(parsed.status().WithContext("parameter to-address"));
    }
    const auto image =
        send ? Need(path)
             : Result<manager::DirectedStatus>(manager::DirectedStatus());
    if (send) {
      if (!image.ok()) return HttpFailure(image.status());
      return Answer(manager_.SendDirected(image->copy.disk_uuid, image->name,
                                          image->uuid, *to));
    }
    const auto found = Find(path);
    if (!found.ok()) return HttpFailure(found.status());
    if (!*found) return {};
    return Answer(manager_.ForgetDirected((*found)->copy.disk_uuid,
                                          (*found)->name, (*found)->uuid));
  }

  http::Response Download(std::string_view path, const Form& form,
                          const http::Request& request) const {
    const std::string& raw = form.Get("forV2Creation");
    if (!raw.empty() && raw != "true" && raw != "false") {
      return HttpFailure(base::InvalidArgumentError(
          "parameter forV2Creation: expected true or false, found '" +
          base::Printable(raw) + "'"));
    }
    const auto image = Need(path);
    if (!image.ok()) return HttpFailure(image.status());
    auto open = manager_.Open(image->name, image->uuid, image->copy.disk_uuid);
    if (!open.ok()) return HttpFailure(open.status());
    http::Response response;
    response.content_type = "application/octet-stream";
    if (request.method == "GET") {
      response.turns = open->downloads;
      response.rate = open->rate;
    }
    if (raw == "true") {
      response.headers.emplace_back("ETag",
                                    "\"sha512:" + open->sha512_hex + "\"");
      api::SendImageFile(std::move(open->fd), open->stamp, response);
      return response;
    }
    response.headers.emplace_back(
        "Content-Disposition",
        "attachment; filename=" + image->name.substr(0, image->name.find('-')) +
            ".gz");
    response.maker =
        api::MakeEncodedBody(std::move(open->fd), open->stamp,
                             compress::MakeGzipEncoder(kGzipLevel));
    return response;
  }

  static Status UnknownAction(std::string_view action,
                              const std::string& expected) {
    return base::InvalidArgumentError("parameter action: expected " + expected +
                                      ", found '" + base::Printable(action) +
                                      "'");
  }

  static http::Response Json(const nlohmann::ordered_json& json) {
    http::Response response;
    response.content_type = "application/json";
    response.body = ToText(json);
    return response;
  }

  // --- making files

  using Fill = Status (Service::*)(const Form&, manager::DirectedSpec&) const;
  struct Action {
    std::string_view name;
    Fill fill;
    std::string_view path = "file-path";
  };

  Status FillDownload(const Form& form, manager::DirectedSpec& spec) const {
    BIM_ASSIGN_OR_RETURN(spec.source.url, form.Need("url"));
    return http::CheckUrl(spec.source.url).WithContext("parameter url");
  }
  Status FillUpload(const Form& form, manager::DirectedSpec& spec) const {
    BIM_RETURN_IF_ERROR(form.Need("size").status());
    if (spec.size == 0) {
      return base::InvalidArgumentError(
          "parameter size: expected more than 0, found 0");
    }
    spec.source.upload = true;
    return base::OkStatus();
  }
  Status FillReceive(const Form& form, manager::DirectedSpec& spec) const {
    BIM_ASSIGN_OR_RETURN(spec.source.receive_port, form.Port("port"));
    BIM_RETURN_IF_ERROR(form.Need("size").status());
    const std::string& type = form.Get("file-type");
    if (!type.empty() && type != "raw" && type != "qcow2") {
      return base::InvalidArgumentError(
          "parameter file-type: expected raw or qcow2, found '" +
          base::Printable(type) + "'");
    }
    if (type == "qcow2" && spec.source.convert.empty()) {
      spec.source.convert = "qcow2";
    }
    return base::OkStatus();
  }
  Status FillClone(const Form& form, manager::DirectedSpec& spec) const {
    BIM_ASSIGN_OR_RETURN(spec.source.clone_name, form.Need("backing-image"));
    BIM_ASSIGN_OR_RETURN(spec.source.clone_uuid,
                         form.Need("backing-image-uuid"));
    BIM_RETURN_IF_ERROR(
        base::CheckName(spec.source.clone_name, "backing-image"));
    BIM_RETURN_IF_ERROR(
        base::CheckName(spec.source.clone_uuid, "backing-image-uuid"));
    const std::string& encryption = form.Get("encryption");
    if (encryption == "encrypt" || encryption == "decrypt") {
      return base::UnimplementedError(
          "encryption of images is not supported yet by this manager: only "
          "encryption=ignore is");
    }
    if (!encryption.empty() && encryption != "ignore") {
      return base::InvalidArgumentError(
          "parameter encryption: expected encrypt, decrypt or ignore, found '" +
          base::Printable(encryption) + "'");
    }
    return base::OkStatus();
  }
  Status FillFetch(const Form& form, manager::DirectedSpec& spec) const {
    BIM_ASSIGN_OR_RETURN(const std::string from, form.Need("src-file-path"));
    BIM_ASSIGN_OR_RETURN(const Place source, PlaceOf(from, true));
    if (source.directory != spec.name + "-" + spec.uuid ||
        source.disk != spec.disk) {
      return base::InvalidArgumentError(
          "parameter src-file-path: expected the data source's file of the "
          "same image, found '" +
          base::Printable(from, 300) + "'");
    }
    // Nobody has to be asked: the caller says that it is free.
    spec.claim_data_source = [] { return base::OkStatus(); };
    return base::OkStatus();
  }
  Status FillRestore(const Form& form, manager::DirectedSpec& spec) const {
    BIM_RETURN_IF_ERROR(form.Need("backup-url").status());
    // What lies there already is reused.
    spec.claim_data_source = [] {
      return base::UnimplementedError(
          "restoring backups is not supported yet by this manager");
    };
    return base::OkStatus();
  }

  Result<manager::DirectedSpec> SpecOf(const Action& action,
                                       const Form& form) const {
    manager::DirectedSpec spec;
    BIM_ASSIGN_OR_RETURN(const std::string path, form.Need(action.path));
    BIM_ASSIGN_OR_RETURN(spec.uuid, form.Need("uuid"));
    BIM_ASSIGN_OR_RETURN(const Place place,
                         PlaceOf(path, options_.data_source));
    BIM_ASSIGN_OR_RETURN(const store::ImageKey key,
                         KeyOfDirectory(place.directory, spec.uuid));
    spec.name = key.name;
    spec.disk = place.disk;
    BIM_ASSIGN_OR_RETURN(const std::string disk, form.Need("disk-uuid"));
    if (disk != place.disk) {
      return base::InvalidArgumentError("parameter disk-uuid: expected '" +
                                        place.disk + "', found '" +
                                        base::Printable(disk) + "'");
    }
    if (const std::string& checksum = form.Get("expected-checksum");
        !checksum.empty()) {
      auto digest =
          base::Digest::FromHex(base::DigestAlgorithm::kSha512, checksum);
      if (!digest.ok()) {
        return digest.status().WithContext("parameter expected-checksum");
      }
      spec.sha512 = *digest;
    }
    BIM_ASSIGN_OR_RETURN(spec.size, form.Size("size"));
    const std::string& engine = form.Get("data-engine");
    if (!engine.empty() && engine != "v1" && engine != "v2") {
      return base::InvalidArgumentError(
          "parameter data-engine: expected v1 or v2, found '" +
          base::Printable(engine) + "'");
    }
    if (engine == "v2") {
      if (!options_.data_source) {
        return base::InvalidArgumentError(
            "parameter data-engine: v2 files are made by a data source, not "
            "here");
      }
      spec.source.convert = "raw";
    }
    BIM_RETURN_IF_ERROR((this->*action.fill)(form, spec));
    if (spec.source.convert == "qcow2" && !options_.data_source) {
      return base::InvalidArgumentError(
          "parameter file-type: qcow2 files are made by a data source, not "
          "here");
    }
    return spec;
  }

  http::Response Make(const Form& form, const http::Request& request) const {
    static constexpr std::array<Action, 6> kActions{{
        {"fetch", &Service::FillFetch, "dst-file-path"},
        {"downloadFromURL", &Service::FillDownload},
        {"upload", &Service::FillUpload},
        {"receiveFromPeer", &Service::FillReceive},
        {"cloneFromBackingImage", &Service::FillClone},
        {"restoreFromBackupURL", &Service::FillRestore},
    }};
    const auto name = form.Need("action");
    if (!name.ok()) return HttpFailure(name.status());
    std::string known;
    for (const Action& action : kActions) {
      known += (known.empty() ? "" : ", ") + std::string(action.name);
      if (action.name != *name) continue;
      const auto spec = SpecOf(action, form);
      if (!spec.ok()) return HttpFailure(spec.status());
      const auto made = manager_.Direct(*spec);
      if (!made.ok()) return HttpFailure(made.status());
      if (!spec->source.upload ||
          made->copy.state == manager::CopyState::kReady) {
        return {};
      }
      http::Response response = ServeUpload(
          manager_, spec->disk, {spec->name, spec->uuid}, spec->size, request);
      const auto now = manager_.GetDirected(spec->disk, spec->name, spec->uuid);
      if (response.taker == nullptr && response.status == 500 && now.ok() &&
          now->copy.state == manager::CopyState::kPending && !now->checking) {
        // Nothing lies there, and nobody brings it any more: as if it had not
        // been asked for. (What failed stays to be seen.)
        (void)manager_.ForgetDirected(spec->disk, spec->name, spec->uuid);
      }
      return response;
    }
    return HttpFailure(UnknownAction(*name, "one of " + known));
  }

  manager::Manager& manager_;
  const FileServiceOptions options_;
};

}  // namespace

http::Response HttpFailure(const Status& status) {
  http::Response response;
  switch (status.code()) {
    case Code::kNotFound:
      response.status = 404;
      break;
    case Code::kInvalidArgument:
    case Code::kFailedPrecondition:
    case Code::kAlreadyExists:
    case Code::kOutOfRange:
    case Code::kDataLoss:
    case Code::kUnimplemented:
      response.status = 400;
      break;
    default:
      response.status = 500;
  }
  response.body = status.message() + "\n";
  return response;
}

http::Response ServeUpload(manager::Manager& manager, const std::string& disk,
                           const store::ImageKey& key, uint64_t size,
                           const http::Request& request) {
  const auto until = std::chrono::steady_clock::now() + kReuseTimeout;
  auto upload = manager.BeginUpload(key.name, key.uuid, 0, size, disk);
  // A file that lies there is looked at first: it may be this one.
  bool waited = false;
  while (!upload.ok() && std::chrono::steady_clock::now() < until) {
    const auto copy = manager.GetDirected(disk, key.name, key.uuid);
    if (!copy.ok() || !copy->checking) break;
    waited = true;
    std::this_thread::sleep_for(kReuseLook);
    upload = manager.BeginUpload(key.name, key.uuid, 0, size, disk);
  }
  if (waited && upload.status().code() == Code::kAlreadyExists) {
    const auto copy = manager.GetDirected(disk, key.name, key.uuid);
    if (copy.ok() && copy->copy.state == manager::CopyState::kReady &&
        copy->size == size) {
      return {};
    }
  }
  if (!upload.ok()) return HttpFailure(upload.status());
  auto taker = std::make_unique<ChunkTaker>(*std::move(upload), size);
  if (Status begun = taker->Begin(request.Field("content-type")); !begun.ok()) {
    // The upload is broken off, which fails the copy.
    return HttpFailure(begun);
  }
  http::Response response;
  response.taker = std::move(taker);
  return response;
}

bool IsFileServicePath(const http::Request& request) {
  return request.path == kFiles ||
         request.path.starts_with(std::string(kFiles) + "/");
}

http::Handler FileService(manager::Manager& manager,
                          FileServiceOptions options) {
  return [service = Service(manager, options)](const http::Request& request) {
    return service.Serve(request);
  };
}

}  // namespace bim::longhorn
