#include "pkg/longhorn/file_path.h"

#include <gtest/gtest.h>

namespace bim::longhorn {
namespace {

using base::Code;

const DiskRoots kRoots{{"/mnt/disk 1", "/data/"}};

TEST(FilePathTest, WhatTheLayoutHas) {
  for (const std::string root : {"/data", "/mnt/disk 1"}) {
    const auto image =
        ParseImagePath(root + "/backing-images/a.b-c_1-u/backing", kRoots);
    ASSERT_TRUE(image.ok()) << image.status().ToString();
    EXPECT_EQ(*image, "a.b-c_1-u");
    const auto tmp = ParseTmpPath(root + "/tmp/a-u", kRoots);
    ASSERT_TRUE(tmp.ok());
    EXPECT_EQ(*tmp, "a-u");
  }
}

TEST(FilePathTest, EverythingElseIsRefused) {
  for (const std::string path : {"",
                                 "/",
                                 "backing",
                                 "/data",
                                 "/data/",
                                 "/etc/passwd",
                                 "data/backing-images/a-u/backing",
                                 "/data/backing-images/a-u/backing/",
                                 "/data/backing-images/a-u/backing.cfg",
                                 "/data/backing-images/a-u/backing.tmp",
                                 "/data/backing-images/a-u/",
                                 "/data/backing-images/a-u",
                                 "/data/backing-images//backing",
                                 "/data/backing-images/backing",
                                 "/data/backing-images/../a-u/backing",
                                 "/data/backing-images/a-u/../b-u/backing",
                                 "/data/backing-images/a-u/./backing",
                                 "/data//backing-images/a-u/backing",
                                 "//data/backing-images/a-u/backing",
                                 "/data/backing-images/a-u//backing",
                                 "/data/backing-images/..-u/backing",
                                 "/data/backing-images/.-u/backing",
                                 "/data/backing-images/-u/backing",
                                 "/data/backing-images/a..b-u/backing",
                                 "/data/backing-images/noseparator/backing",
                                 "/data/backing-images/a%2Fb-u/backing",
                                 "/data/backing-images/a\nb-u/backing",
                                 "/data/backing-images/a b-u/backing",
                                 "/data/../data/backing-images/a-u/backing",
                                 "/datax/backing-images/a-u/backing",
                                 "/mnt/disk 1x/backing-images/a-u/backing",
                                 "/mnt/disk+1/backing-images/a-u/backing",
                                 "/data/longhorn-disk.cfg",
                                 "/data/.bim/owner",
                                 "/data/tmp/a-u"}) {
    const auto parsed = ParseImagePath(path, kRoots);
    EXPECT_EQ(parsed.status().code(), Code::kInvalidArgument) << path;
  }
  EXPECT_FALSE(
      ParseImagePath(std::string("/data/backing-images/a-u\0/backing", 34),
                     kRoots)
          .ok());
  EXPECT_FALSE(ParseImagePath("/data/backing-images/" + std::string(130, 'a') +
                                  "-u/backing",
                              kRoots)
                   .ok());
  for (const std::string path :
       {"/data/tmp/", "/data/tmp/a", "/data/tmp/a-u/b", "/data/tmp/../a-u",
        "/data/tmp/a-u/", "/data/tmp/-u", "/data/backing-images/a-u/backing"}) {
    EXPECT_FALSE(ParseTmpPath(path, kRoots).ok()) << path;
  }
}

// Somewhere a "-" has a name before it and a uuid behind it.
TEST(FilePathTest, BothPartsAreNames) {
  const std::string a40(40, 'a');
  const std::string a64(64, 'a');
  const std::string a65(65, 'a');
  const std::string u64(64, 'u');
  const std::string good[] = {"a-u", "A-0", a64 + "-u", "a-" + u64,
                              a64 + "-" + u64,
                              // There are more ways than one.
                              "a--u", "a-u-", "a---u", "a.-u.", "a_-u_",
                              a64 + "-u-" + std::string(62, 'v'),
                              a40 + "-" + std::string(23, 'b') + "-" + u64,
                              u64 + "-" + a40 + "-" + std::string(23, 'b')};
  const std::string bad[] = {
      "-", "--", "a", "-u", "a-", "a-_u", "a-.u", "_a-u", ".a-u", "--a",
      // Whatever the way, one part is too long.
      a65 + "-u", "a-" + a65, a65 + "-" + a65, a64 + a64,
      a40 + "-" + a40 + "-" + a40, a64 + "-u-" + u64, a64 + "--" + u64,
      a64 + "-" + u64 + "-",
      // No name has it, wherever one begins.
      "a-u..", "a..-u", "a-..u", "a..b-u-v", "a-b-u..v", "..", "a-..", "..-..",
      "a/b-u", "a-u/b", "a b-u", "a-u\n", "a-u\t", "a-\xc3\xa4", "\xc3\xa4-u",
      "a%-u", "a+-u", "a:-u", "a\\-u", "~-u", "a-*", std::string("a-u\0", 4),
      std::string("a\0-u", 4)};
  const auto image = [](const std::string& directory) {
    return ParseImagePath("/data/backing-images/" + directory + "/backing",
                          kRoots);
  };
  const auto tmp = [](const std::string& directory) {
    return ParseTmpPath("/data/tmp/" + directory, kRoots);
  };
  for (const std::string& directory : good) {
    ASSERT_TRUE(image(directory).ok()) << image(directory).status().ToString();
    EXPECT_EQ(*image(directory), directory);
    ASSERT_TRUE(tmp(directory).ok()) << tmp(directory).status().ToString();
    EXPECT_EQ(*tmp(directory), directory);
  }
  for (const std::string& directory : bad) {
    for (const auto& parsed : {image(directory), tmp(directory)}) {
      EXPECT_EQ(parsed.status().code(), Code::kInvalidArgument) << directory;
    }
  }
}

TEST(FilePathTest, EveryLength) {
  for (size_t name = 0; name <= 66; ++name) {
    for (size_t uuid = 0; uuid <= 66; ++uuid) {
      const std::string directory =
          std::string(name, 'a') + "-" + std::string(uuid, 'u');
      const bool good = name >= 1 && name <= 64 && uuid >= 1 && uuid <= 64;
      EXPECT_EQ(ParseTmpPath("/data/tmp/" + directory, kRoots).ok(), good)
          << name << " " << uuid;
    }
  }
}

TEST(FilePathTest, EveryCharacter) {
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    const bool alphanumeric = (c >= 'a' && c <= 'z') ||
                              (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    const bool within = alphanumeric || c == '.' || c == '-' || c == '_';
    const auto ok = [](const std::string& directory) {
      return ParseImagePath("/data/backing-images/" + directory + "/backing",
                            kRoots)
          .ok();
    };
    EXPECT_EQ(ok(std::string("a") + c + "-u"), within) << byte;
    EXPECT_EQ(ok(std::string("a-u") + c), within) << byte;
    EXPECT_EQ(ok(c + std::string("a-u")), alphanumeric) << byte;
    // "a--u" is a name "a-".
    EXPECT_EQ(ok(std::string("a-") + c + "u"), alphanumeric || c == '-')
        << byte;
  }
}

TEST(FilePathTest, WhatIsShownIsBoundedAndPlain) {
  const auto parsed =
      ParseImagePath("/data/\n\x1b" + std::string(100'000, 'x'), kRoots);
  const std::string said = parsed.status().message();
  EXPECT_LT(said.size(), 500u);
  EXPECT_EQ(said.find_first_of("\n\x1b"), said.npos);
  EXPECT_NE(said.find("/mnt/disk 1/backing-images/<name>-<uuid>/backing"),
            said.npos);
}

TEST(FilePathTest, OtherRoots) {
  EXPECT_EQ(ParseTmpPath("/tmp/a-u", DiskRoots{}).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(*ParseTmpPath("/tmp/a-u", DiskRoots{{"/"}}), "a-u");
  EXPECT_FALSE(ParseTmpPath("//tmp/a-u", DiskRoots{{"/"}}).ok());
  // One within the other.
  const DiskRoots nested{{"/data", "/data/tmp"}};
  EXPECT_EQ(*ParseTmpPath("/data/tmp/tmp/a-u", nested), "a-u");
  EXPECT_EQ(*ParseTmpPath("/data/tmp/a-u", nested), "a-u");
}

TEST(FilePathTest, WhoseDirectory) {
  const auto key = KeyOfDirectory("a-b-c", "b-c");
  ASSERT_TRUE(key.ok());
  EXPECT_EQ(key->name, "a");
  EXPECT_EQ(KeyOfDirectory("a-b-c", "c")->name, "a-b");
  for (const char* uuid : {"", "x", "a-b-c", "../c", "bc"}) {
    EXPECT_EQ(KeyOfDirectory("a-b-c", uuid).status().code(),
              Code::kInvalidArgument)
        << uuid;
  }
}

TEST(FilePathTest, OnlyNamesHaveDirectories) {
  const std::string a64(64, 'a');
  const std::string u64(64, 'u');
  const auto longest = KeyOfDirectory(a64 + "-" + u64, u64);
  ASSERT_TRUE(longest.ok()) << longest.status().ToString();
  EXPECT_EQ(longest->name, a64);
  EXPECT_EQ(longest->uuid, u64);
  EXPECT_EQ(KeyOfDirectory("a--u", "u")->name, "a-");
  const std::pair<std::string, std::string> bad[] = {
      {a64 + "a-u", "u"}, {"a-u" + u64, "u" + u64},
      {"-u", "u"},        {"_a-u", "u"},
      {".a-u", "u"},      {"a..b-u", "u"},
      {"a b-u", "u"},     {"a/b-u", "u"},
      {"a--u", "-u"},     {"a-.u", ".u"},
      {"a-u..v", "u..v"}, {"a-u/v", "u/v"},
      {"a-u", "U"},       {"", "u"},
      {"u", "u"},         {"a-u", "a-u"},
      {"a-u ", "u"}};
  for (const auto& [directory, uuid] : bad) {
    EXPECT_EQ(KeyOfDirectory(directory, uuid).status().code(),
              Code::kInvalidArgument)
        << directory << " " << uuid;
  }
}

}  // namespace
}  // namespace bim::longhorn
