#include "pkg/manager/desired.h"

#include <nlohmann/json.hpp>

#include "pkg/base/names.h"
#include "pkg/meta/version.h"

namespace bim::manager {

using base::Digest;
using base::DigestAlgorithm;
using nlohmann::json;

std::string EncodeDesired(const Desired& desired) {
  const ImageSpec& spec = desired.spec;
  json object = {{"version", meta::kDiskFormatVersion},
                 {"minVersion", meta::kDiskFormatMinVersion},
                 {"name", spec.name},
                 {"uuid", spec.uuid},
                 {"url", spec.source.url},
                 {"credential", spec.source.credential},
                 {"peers", spec.source.peers},
                 {"upload", spec.source.upload},
                 {"size", spec.size},
                 {"disks", spec.disks},
                 {"allDisks", spec.all_disks},
                 {"directed", spec.directed},
                 {"removing", desired.removing},
                 {"attempts", desired.attempts},
                 {"permanent", desired.permanent},
                 {"lastError", desired.last_error}};
  if (spec.sha512) object["sha512"] = spec.sha512->Hex();
  if (spec.sha256) object["sha256"] = spec.sha256->Hex();
  if (desired.proven) object["proven"] = desired.proven->Hex();
  if (desired.next_attempt) {
    object["nextAttemptNs"] =
        std::chrono::duration_cast<std::chrono::nanoseconds>(
            desired.next_attempt->time_since_epoch())
            .count();
  }
  // A URL may hold bytes that are no UTF-8: kept out by CheckUrl, replaced
  // here rather than thrown about.
  return object.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

base::Result<Desired> DecodeDesired(std::string_view text) {
  const auto damaged = [](const std::string& what) {
    return base::DataLossError("a record of what is wanted is damaged: " +
                               what);
  };
  const json object = json::parse(text, nullptr, false);
  if (!object.is_object()) return damaged("it is no JSON object");
  Desired desired;
  try {
    if (object.at("minVersion").get<int>() > meta::kDiskFormatVersion) {
      return base::FailedPreconditionError(
          "a record of what is wanted has format " +
          std::to_string(object.at("version").get<int>()) +
          ", this program reads up to " +
          std::to_string(meta::kDiskFormatVersion));
    }
    ImageSpec& spec = desired.spec;
    object.at("name").get_to(spec.name);
    object.at("uuid").get_to(spec.uuid);
    object.at("url").get_to(spec.source.url);
    object.at("credential").get_to(spec.source.credential);
    // Not in records of the first version.
    if (object.contains("peers")) object["peers"].get_to(spec.source.peers);
    if (object.contains("upload")) object["upload"].get_to(spec.source.upload);
    object.at("size").get_to(spec.size);
    object.at("disks").get_to(spec.disks);
    object.at("allDisks").get_to(spec.all_disks);
    if (object.contains("directed")) object["directed"].get_to(spec.directed);
    object.at("removing").get_to(desired.removing);
    object.at("attempts").get_to(desired.attempts);
    object.at("permanent").get_to(desired.permanent);
    object.at("lastError").get_to(desired.last_error);
    const auto digest = [&](DigestAlgorithm algorithm, const char* key,
                            std::optional<Digest>& out) -> base::Status {
      if (!object.contains(key)) return base::OkStatus();
      auto found = Digest::FromHex(algorithm, object[key].get<std::string>());
      if (!found.ok()) return damaged(found.status().message());
      out = *found;
      return base::OkStatus();
    };
    BIM_RETURN_IF_ERROR(
        digest(DigestAlgorithm::kSha512, "sha512", spec.sha512));
    BIM_RETURN_IF_ERROR(
        digest(DigestAlgorithm::kSha512, "proven", desired.proven));
    BIM_RETURN_IF_ERROR(
        digest(DigestAlgorithm::kSha256, "sha256", spec.sha256));
    if (object.contains("nextAttemptNs")) {
      desired.next_attempt =
          TimePoint(std::chrono::duration_cast<TimePoint::duration>(
              std::chrono::nanoseconds(
                  object["nextAttemptNs"].get<int64_t>())));
    }
  } catch (const json::exception& error) {
    return damaged(error.what());
  }
  if (!base::CheckName(desired.spec.name, "name").ok() ||
      !base::CheckName(desired.spec.uuid, "uuid").ok()) {
    return damaged("its name or uuid is not valid");
  }
  return desired;
}

}  // namespace bim::manager
