BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" VALUES(1,'graft','m001_people','2026-11-25 23:51:38.616216+00:00');
INSERT INTO "_sqlite_migrations" VALUES(2,'graft','m002_repos','2026-11-25 23:51:38.617310+00:00');
INSERT INTO "_sqlite_migrations" VALUES(3,'graft','m003_artifacts','2026-11-25 23:51:38.618318+00:00');
INSERT INTO "_sqlite_migrations" VALUES(4,'graft','m004_tasks','2026-11-25 23:51:38.618695+00:00');
INSERT INTO "_sqlite_migrations" VALUES(5,'graft','m005_listed_names','2026-11-25 23:51:38.619210+00:00');
INSERT INTO "_sqlite_migrations" VALUES(6,'graft','m006_uploads','2026-11-25 23:51:38.619473+00:00');
CREATE TABLE artifacts (
            revision_id TEXT PRIMARY KEY REFERENCES revisions(id) ON DELETE CASCADE, digest TEXT NOT NULL,
            method TEXT NOT NULL, variant TEXT NOT NULL, task TEXT NOT NULL, base_id TEXT, base_fingerprint TEXT,
            parameters INTEGER NOT NULL, bytes INTEGER NOT NULL, max_rank INTEGER, dtype TEXT NOT NULL,
            config TEXT NOT NULL, tensors TEXT NOT NULL, provenance TEXT NOT NULL, card TEXT NOT NULL, warnings TEXT NOT NULL);
INSERT INTO "artifacts" VALUES('94e38abe8a7effdb9c3d828672543d57a107a45d','5d1d55f26baed253e18dcd62ce24394c7b25e68f34d069ad7a0066557afac3f1','lora','','topics','golden/small','5555555555555555555555555555555555555555555555555555555555555555',32,408,2,'F32','{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "golden/small", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}','{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": {"dtype": "F32", "shape": [2, 8]}, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": {"dtype": "F32", "shape": [8, 2]}}','{"base": {"id": "golden/small", "fingerprint": "5555555555555555555555555555555555555555555555555555555555555555"}, "made_by": "the golden test"}','{"base_model": "golden/small", "license": "apache-2.0", "library_name": "peft", "tags": ["lora", "task:topics"]}','[]');
INSERT INTO "artifacts" VALUES('467fde424ca4e5f3b39a6f81000993ccd39d4452','b044a6df00647fefd8849cfbf2b16b83fa8de348f863361c4e7dc159a7e88d82','lora','','topics','golden/small','5555555555555555555555555555555555555555555555555555555555555555',32,408,2,'F32','{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "golden/small", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}','{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": {"dtype": "F32", "shape": [2, 8]}, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": {"dtype": "F32", "shape": [8, 2]}}','{"base": {"id": "golden/small", "fingerprint": "5555555555555555555555555555555555555555555555555555555555555555"}, "made_by": "the golden test"}','{"base_model": "golden/small", "license": "apache-2.0", "library_name": "peft", "tags": ["lora", "task:topics"], "model-index": [{"name": "topics", "results": [{"task": {"type": "text-classification", "name": "topics"}, "dataset": {"name": "headlines", "type": "headlines", "revision": "1"}, "metrics": [{"type": "accuracy", "value": 0.75}]}]}]}','[]');
INSERT INTO "artifacts" VALUES('05dbe34cbea1e51aae6c99f7c3715f41a170d902','5d1d55f26baed253e18dcd62ce24394c7b25e68f34d069ad7a0066557afac3f1','lora','','topics','golden/small','5555555555555555555555555555555555555555555555555555555555555555',32,408,2,'F32','{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "golden/small", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}','{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": {"dtype": "F32", "shape": [2, 8]}, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": {"dtype": "F32", "shape": [8, 2]}}','{}','{"tags": ["task:topics"]}','[]');
INSERT INTO "artifacts" VALUES('10c5846de4c63da28ce0d5e752fdaa3ee1492d2a','1176dc7c63f087f8ce2422d0b284c45a7a1a3eda3e893b084c1bdb7b6b908918','lora','','topics','golden/small','5555555555555555555555555555555555555555555555555555555555555555',32,408,2,'F32','{"base_model_name_or_path": "golden/small", "bias": "none", "lora_alpha": 4, "peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}','{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": {"dtype": "F32", "shape": [2, 8]}, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": {"dtype": "F32", "shape": [8, 2]}}','{"base": {"id": "/data/bases/small", "fingerprint": "5555555555555555555555555555555555555555555555555555555555555555"}, "made_by": "the golden test"}','{"base_model": "golden/small", "license": "apache-2.0", "library_name": "peft", "tags": ["lora", "task:topics"]}','[]');
INSERT INTO "artifacts" VALUES('f3aa3e39be294185b8aecc231c3df418a711ed17','5931b783992f623173299aea2cfb7e418aaf0f310a8f0a54283392344adc0a06','lora','','topics','golden/small','5555555555555555555555555555555555555555555555555555555555555555',32,408,2,'F32','{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "golden/small", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}','{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": {"dtype": "F32", "shape": [2, 8]}, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": {"dtype": "F32", "shape": [8, 2]}}','{"base": {"id": "golden/small", "fingerprint": "5555555555555555555555555555555555555555555555555555555555555555"}, "made_by": "the golden test"}','{"base_model": "golden/small", "license": "apache-2.0", "library_name": "peft", "tags": ["lora", "task:topics"]}','[]');
INSERT INTO "artifacts" VALUES('fd988dec516d8424846eac7d917572bac87acbe8','652baf42e123433ccc5cee4c707b7eb6ffe9dcb168680a36a78374a68ec6dee1','lora','','topics','golden/small','5555555555555555555555555555555555555555555555555555555555555555',32,408,2,'F32','{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "golden/small", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}','{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": {"dtype": "F32", "shape": [2, 8]}, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": {"dtype": "F32", "shape": [8, 2]}}','{"base": {"id": "golden/small", "fingerprint": "5555555555555555555555555555555555555555555555555555555555555555"}, "made_by": "the golden test"}','{"base_model": "golden/small", "license": "apache-2.0", "library_name": "peft", "tags": ["lora", "task:topics"]}','[]');
CREATE TABLE audit (
            id INTEGER PRIMARY KEY, at TEXT NOT NULL, who TEXT NOT NULL, action TEXT NOT NULL,
            subject TEXT NOT NULL, detail TEXT NOT NULL DEFAULT '');
INSERT INTO "audit" VALUES(1,'2026-01-02T03:04:07.000000Z','ann','base.add','golden/small','5555555555555555555555555555555555555555555555555555555555555555');
INSERT INTO "audit" VALUES(2,'2026-01-02T03:04:09.000000Z','ann','task.add','topics','458997f00d6278f69a9425a24275655a0db7dac8c4e1ae2894f0d15b9d44e2a6');
INSERT INTO "audit" VALUES(3,'2026-01-02T03:04:11.000000Z','ann','repo.create','ann/topics','');
INSERT INTO "audit" VALUES(4,'2026-01-02T03:04:14.000000Z','ann','commit','ann/topics','94e38abe8a7effdb9c3d828672543d57a107a45d');
INSERT INTO "audit" VALUES(5,'2026-01-02T03:04:19.000000Z','bob','commit','ann/topics','467fde424ca4e5f3b39a6f81000993ccd39d4452');
INSERT INTO "audit" VALUES(6,'2026-01-02T03:04:21.000000Z','bob','branch.create','ann/topics@try','94e38abe8a7effdb9c3d828672543d57a107a45d');
INSERT INTO "audit" VALUES(7,'2026-01-02T03:04:24.000000Z','bob','commit','ann/topics','05dbe34cbea1e51aae6c99f7c3715f41a170d902');
INSERT INTO "audit" VALUES(8,'2026-01-02T03:04:26.000000Z','ann','promote','ann/topics@production','94e38abe8a7effdb9c3d828672543d57a107a45d');
INSERT INTO "audit" VALUES(9,'2026-01-02T03:04:28.000000Z','ann','promote','ann/topics@production','467fde424ca4e5f3b39a6f81000993ccd39d4452');
INSERT INTO "audit" VALUES(10,'2026-01-02T03:04:30.000000Z','ann','promote','ann/topics@production','05dbe34cbea1e51aae6c99f7c3715f41a170d902');
INSERT INTO "audit" VALUES(11,'2026-01-02T03:04:32.000000Z','ann','rollback','ann/topics@production','467fde424ca4e5f3b39a6f81000993ccd39d4452');
INSERT INTO "audit" VALUES(12,'2026-01-02T03:04:34.000000Z','bob','repo.create','bob/local','private');
INSERT INTO "audit" VALUES(13,'2026-01-02T03:04:37.000000Z','bob','commit','bob/local','10c5846de4c63da28ce0d5e752fdaa3ee1492d2a');
INSERT INTO "audit" VALUES(14,'2026-01-02T03:04:39.000000Z','bob','repo.create','bob/gone','');
INSERT INTO "audit" VALUES(15,'2026-01-02T03:04:42.000000Z','bob','commit','bob/gone','f3aa3e39be294185b8aecc231c3df418a711ed17');
INSERT INTO "audit" VALUES(16,'2026-01-02T03:04:44.000000Z','bob','repo.delete','bob/gone','');
INSERT INTO "audit" VALUES(17,'2026-01-02T03:04:46.000000Z','bob','repo.create','bob/old-name','');
INSERT INTO "audit" VALUES(18,'2026-01-02T03:04:49.000000Z','bob','commit','bob/old-name','fd988dec516d8424846eac7d917572bac87acbe8');
INSERT INTO "audit" VALUES(19,'2026-01-02T03:04:51.000000Z','bob','repo.create','bob/new-name','');
INSERT INTO "audit" VALUES(20,'2026-01-02T03:04:53.000000Z','bob','repo.move','bob/old-name','bob/new-name');
INSERT INTO "audit" VALUES(21,'2026-01-02T03:04:55.000000Z','ann','evaluation','5555555555555555555555555555555555555555555555555555555555555555','topics');
INSERT INTO "audit" VALUES(22,'2026-01-02T03:04:57.000000Z','ann','evaluation','ann/topics','topics');
INSERT INTO "audit" VALUES(23,'2026-01-02T03:04:59.000000Z','ann','evaluation','ann/topics','topics');
CREATE TABLE bases (fingerprint TEXT PRIMARY KEY, id TEXT NOT NULL, manifest TEXT NOT NULL, created_at TEXT NOT NULL);
INSERT INTO "bases" VALUES('5555555555555555555555555555555555555555555555555555555555555555','golden/small','{"fingerprint": "5555555555555555555555555555555555555555555555555555555555555555", "head_dim": 4, "hidden_size": 8, "id": "golden/small", "learned_positions": false, "max_positions": 64, "model_type": "llama", "modules": {"model.layers.0.self_attn.k_proj": {"bias": false, "in_features": 8, "kind": "linear", "out_features": 8}, "model.layers.0.self_attn.o_proj": {"bias": false, "in_features": 8, "kind": "linear", "out_features": 8}, "model.layers.0.self_attn.q_proj": {"bias": false, "in_features": 8, "kind": "linear", "out_features": 8}, "model.layers.0.self_attn.v_proj": {"bias": false, "in_features": 8, "kind": "linear", "out_features": 8}}, "norm_first": true, "num_heads": 2, "num_kv_heads": 2, "num_layers": 1, "parallel_residual": false, "parameters": 1000, "rotary": true, "vocab_size": 32}','2026-01-02T03:04:06.000000Z');
CREATE TABLE blobs (
            sha256 TEXT PRIMARY KEY, git_oid TEXT NOT NULL, size INTEGER NOT NULL, created_at TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "blobs" VALUES('000f2fc6befa3aad5e84219a00edc8342698704f4993fd6c6fd2045c68b77ffa','ba73fd81d6e8066b4c7dc751fddfb154fc831486',43,'2026-01-02T03:04:22.000000Z');
INSERT INTO "blobs" VALUES('1420650f6aa406342bcc484f9bf58a0fcfc62b2db88185dcbaffb02a132bf1ff','a8a4f2986c87dfca03f3d419539a2f4f937554ea',166,'2026-01-02T03:04:35.000000Z');
INSERT INTO "blobs" VALUES('14bcde2ad2fd3f1cb09185f2ee7487597a8810e5912966e107a31db37484213c','17015ddeeee5f1fca28f5db4a7e445c5d8451cd9',186,'2026-01-02T03:04:35.000000Z');
INSERT INTO "blobs" VALUES('17f621f8254c2a5cdd8cf74fce49db6cafea1a07b6cddd6b07ee7803f70b4dee','6cf7ce4d7365d0d39873e06994fb4509a8db3902',408,'2026-01-02T03:04:35.000000Z');
INSERT INTO "blobs" VALUES('2d18029f8e25014a385938cda83b18ab897ac0a254a6db25f412e948f6db5b53','9bf87d18c7a302794a327c899b10367b86576225',408,'2026-01-02T03:04:12.000000Z');
INSERT INTO "blobs" VALUES('2e73cdcd77ac62bf371e201dd52a9b6006181383f1123e2f06aa8cee153913e3','253365fd9c488e593ff5bafd1cb895d08a0eb30d',135,'2026-01-02T03:04:35.000000Z');
INSERT INTO "blobs" VALUES('33751541010723dc7f1037d5fb02dd87763139bb07213479be0d8d520d6a97cf','0c14cd01e8f1023e43f86fb7d76c13c2f0b54771',408,'2026-01-02T03:04:16.000000Z');
INSERT INTO "blobs" VALUES('3e6f72c0656b551b02bfaad56bcf2b01721b18ef1053268e118c93d9a8a623fa','dcf271eba65b780c21db3b1ebeb220cca9de537d',140,'2026-01-02T03:04:35.000000Z');
INSERT INTO "blobs" VALUES('458997f00d6278f69a9425a24275655a0db7dac8c4e1ae2894f0d15b9d44e2a6','29652a2e3492af1369412c3ea55bc13566c34084',294,'2026-01-02T03:04:08.000000Z');
INSERT INTO "blobs" VALUES('6252e677bb6e19ff2ca83a6230f03a789b38906f9fbdc968016f1c21075e14a7','cb73763494e0461459fee1d5d3571c8ecccff79b',408,'2026-01-02T03:04:47.000000Z');
INSERT INTO "blobs" VALUES('64528b87be9314f8cddea8056f741801ec7d13151e85f63966f79677320091e8','92f653924406bc33747dfddf6518d084d2578274',161,'2026-01-02T03:04:12.000000Z');
INSERT INTO "blobs" VALUES('651322da3d1de37e1a3f5115bf758116c9803d53acd3b89000f8a9a714c5a3f3','887cc7be1c6a6cbbd4ca78b2d4c0b679adc98b93',338,'2026-01-02T03:04:16.000000Z');
INSERT INTO "blobs" VALUES('83b0db58356d041821860fd90db0a71dc1f5c75d114e695681cc473cc520f177','bd3fbbd313608b5565356824f77695de94922ef8',145,'2026-01-02T03:04:12.000000Z');
INSERT INTO "blobs" VALUES('c23b59b276dfab59c8e53c762b916e6db1c84b3a0687a2b160d4e6cd443e6eb0','a6c23b4c934681cfea80468433acc4310294caa2',408,'2026-01-02T03:04:40.000000Z');
INSERT INTO "blobs" VALUES('cf1def4d417add57086020abd9dd86449cb56524a4b72e9d924043226de8753d','8742835ea9d1f16b47b2cbfecf632d806e918a0a',135,'2026-01-02T03:04:40.000000Z');
INSERT INTO "blobs" VALUES('d2bbdfd452b91bf0151879289f1d8387e08fe7b33c234ef0e22204069f4802e7','121f4f5ba1645d9ba9af8c99e155dcf3d6be926d',135,'2026-01-02T03:04:12.000000Z');
INSERT INTO "blobs" VALUES('d5763d1ba48aa473470763caf7e580af63f9a8bbde1f71a22d5b280d805f58f5','79cfbeef96b2b4f558a1cebe7b0469d76c8a1751',135,'2026-01-02T03:04:47.000000Z');
INSERT INTO "blobs" VALUES('dadc4bcf6c107f1e2f7d912cfb23ea1a79c300d0dbaa097dc1040dc3fff4d328','29c7c0133ec04f53d42f2b71570168386af49ac8',150,'2026-01-02T03:04:35.000000Z');
CREATE TABLE evaluations (
            id INTEGER PRIMARY KEY, repo_id INTEGER REFERENCES repos(id), revision_id TEXT, digest TEXT,
            base_fingerprint TEXT, task TEXT NOT NULL, data_hash TEXT NOT NULL, metric TEXT NOT NULL, value REAL NOT NULL,
            n INTEGER NOT NULL, low REAL, high REAL, seconds REAL, engine TEXT NOT NULL, source TEXT NOT NULL
            CHECK (source IN ('graft','self-reported')), extra TEXT NOT NULL, who TEXT NOT NULL, created_at TEXT NOT NULL);
INSERT INTO "evaluations" VALUES(1,1,'467fde424ca4e5f3b39a6f81000993ccd39d4452','b044a6df00647fefd8849cfbf2b16b83fa8de348f863361c4e7dc159a7e88d82','5555555555555555555555555555555555555555555555555555555555555555','topics','1','accuracy',0.75,0,NULL,NULL,NULL,'','self-reported','{"dataset": "headlines"}','bob','2026-01-02T03:04:17.000000Z');
INSERT INTO "evaluations" VALUES(2,NULL,NULL,NULL,'5555555555555555555555555555555555555555555555555555555555555555','topics','458997f00d6278f69a9425a24275655a0db7dac8c4e1ae2894f0d15b9d44e2a6','accuracy',0.5,3,NULL,NULL,NULL,'golden','graft','{}','ann','2026-01-02T03:04:54.000000Z');
INSERT INTO "evaluations" VALUES(3,1,'94e38abe8a7effdb9c3d828672543d57a107a45d','5d1d55f26baed253e18dcd62ce24394c7b25e68f34d069ad7a0066557afac3f1','5555555555555555555555555555555555555555555555555555555555555555','topics','458997f00d6278f69a9425a24275655a0db7dac8c4e1ae2894f0d15b9d44e2a6','accuracy',6.66666666666666629659e-01,3,0.2,0.9,NULL,'golden','graft','{}','ann','2026-01-02T03:04:56.000000Z');
INSERT INTO "evaluations" VALUES(4,1,'467fde424ca4e5f3b39a6f81000993ccd39d4452','b044a6df00647fefd8849cfbf2b16b83fa8de348f863361c4e7dc159a7e88d82','5555555555555555555555555555555555555555555555555555555555555555','topics','458997f00d6278f69a9425a24275655a0db7dac8c4e1ae2894f0d15b9d44e2a6','accuracy',1.0,3,0.4,1.0,1.5,'golden','graft','{}','ann','2026-01-02T03:04:58.000000Z');
CREATE TABLE files (
            revision_id TEXT NOT NULL REFERENCES revisions(id) ON DELETE CASCADE, path TEXT NOT NULL,
            sha256 TEXT NOT NULL REFERENCES blobs(sha256), changed_in TEXT NOT NULL,
            PRIMARY KEY (revision_id, path)) WITHOUT ROWID;
INSERT INTO "files" VALUES('05dbe34cbea1e51aae6c99f7c3715f41a170d902','README.md','000f2fc6befa3aad5e84219a00edc8342698704f4993fd6c6fd2045c68b77ffa','05dbe34cbea1e51aae6c99f7c3715f41a170d902');
INSERT INTO "files" VALUES('05dbe34cbea1e51aae6c99f7c3715f41a170d902','adapter_config.json','64528b87be9314f8cddea8056f741801ec7d13151e85f63966f79677320091e8','94e38abe8a7effdb9c3d828672543d57a107a45d');
INSERT INTO "files" VALUES('05dbe34cbea1e51aae6c99f7c3715f41a170d902','adapter_model.safetensors','2d18029f8e25014a385938cda83b18ab897ac0a254a6db25f412e948f6db5b53','94e38abe8a7effdb9c3d828672543d57a107a45d');
INSERT INTO "files" VALUES('10c5846de4c63da28ce0d5e752fdaa3ee1492d2a','README.md','2e73cdcd77ac62bf371e201dd52a9b6006181383f1123e2f06aa8cee153913e3','10c5846de4c63da28ce0d5e752fdaa3ee1492d2a');
INSERT INTO "files" VALUES('10c5846de4c63da28ce0d5e752fdaa3ee1492d2a','adapter_config.json','14bcde2ad2fd3f1cb09185f2ee7487597a8810e5912966e107a31db37484213c','10c5846de4c63da28ce0d5e752fdaa3ee1492d2a');
INSERT INTO "files" VALUES('10c5846de4c63da28ce0d5e752fdaa3ee1492d2a','adapter_model.safetensors','17f621f8254c2a5cdd8cf74fce49db6cafea1a07b6cddd6b07ee7803f70b4dee','10c5846de4c63da28ce0d5e752fdaa3ee1492d2a');
INSERT INTO "files" VALUES('10c5846de4c63da28ce0d5e752fdaa3ee1492d2a','graft.json','dadc4bcf6c107f1e2f7d912cfb23ea1a79c300d0dbaa097dc1040dc3fff4d328','10c5846de4c63da28ce0d5e752fdaa3ee1492d2a');
INSERT INTO "files" VALUES('467fde424ca4e5f3b39a6f81000993ccd39d4452','README.md','651322da3d1de37e1a3f5115bf758116c9803d53acd3b89000f8a9a714c5a3f3','467fde424ca4e5f3b39a6f81000993ccd39d4452');
INSERT INTO "files" VALUES('467fde424ca4e5f3b39a6f81000993ccd39d4452','adapter_config.json','64528b87be9314f8cddea8056f741801ec7d13151e85f63966f79677320091e8','94e38abe8a7effdb9c3d828672543d57a107a45d');
INSERT INTO "files" VALUES('467fde424ca4e5f3b39a6f81000993ccd39d4452','adapter_model.safetensors','33751541010723dc7f1037d5fb02dd87763139bb07213479be0d8d520d6a97cf','467fde424ca4e5f3b39a6f81000993ccd39d4452');
INSERT INTO "files" VALUES('467fde424ca4e5f3b39a6f81000993ccd39d4452','graft.json','83b0db58356d041821860fd90db0a71dc1f5c75d114e695681cc473cc520f177','94e38abe8a7effdb9c3d828672543d57a107a45d');
INSERT INTO "files" VALUES('94e38abe8a7effdb9c3d828672543d57a107a45d','README.md','d2bbdfd452b91bf0151879289f1d8387e08fe7b33c234ef0e22204069f4802e7','94e38abe8a7effdb9c3d828672543d57a107a45d');
INSERT INTO "files" VALUES('94e38abe8a7effdb9c3d828672543d57a107a45d','adapter_config.json','64528b87be9314f8cddea8056f741801ec7d13151e85f63966f79677320091e8','94e38abe8a7effdb9c3d828672543d57a107a45d');
INSERT INTO "files" VALUES('94e38abe8a7effdb9c3d828672543d57a107a45d','adapter_model.safetensors','2d18029f8e25014a385938cda83b18ab897ac0a254a6db25f412e948f6db5b53','94e38abe8a7effdb9c3d828672543d57a107a45d');
INSERT INTO "files" VALUES('94e38abe8a7effdb9c3d828672543d57a107a45d','graft.json','83b0db58356d041821860fd90db0a71dc1f5c75d114e695681cc473cc520f177','94e38abe8a7effdb9c3d828672543d57a107a45d');
INSERT INTO "files" VALUES('f3aa3e39be294185b8aecc231c3df418a711ed17','README.md','cf1def4d417add57086020abd9dd86449cb56524a4b72e9d924043226de8753d','f3aa3e39be294185b8aecc231c3df418a711ed17');
INSERT INTO "files" VALUES('f3aa3e39be294185b8aecc231c3df418a711ed17','adapter_config.json','64528b87be9314f8cddea8056f741801ec7d13151e85f63966f79677320091e8','f3aa3e39be294185b8aecc231c3df418a711ed17');
INSERT INTO "files" VALUES('f3aa3e39be294185b8aecc231c3df418a711ed17','adapter_model.safetensors','c23b59b276dfab59c8e53c762b916e6db1c84b3a0687a2b160d4e6cd443e6eb0','f3aa3e39be294185b8aecc231c3df418a711ed17');
INSERT INTO "files" VALUES('f3aa3e39be294185b8aecc231c3df418a711ed17','graft.json','83b0db58356d041821860fd90db0a71dc1f5c75d114e695681cc473cc520f177','f3aa3e39be294185b8aecc231c3df418a711ed17');
INSERT INTO "files" VALUES('fd988dec516d8424846eac7d917572bac87acbe8','README.md','d5763d1ba48aa473470763caf7e580af63f9a8bbde1f71a22d5b280d805f58f5','fd988dec516d8424846eac7d917572bac87acbe8');
INSERT INTO "files" VALUES('fd988dec516d8424846eac7d917572bac87acbe8','adapter_config.json','64528b87be9314f8cddea8056f741801ec7d13151e85f63966f79677320091e8','fd988dec516d8424846eac7d917572bac87acbe8');
INSERT INTO "files" VALUES('fd988dec516d8424846eac7d917572bac87acbe8','adapter_model.safetensors','6252e677bb6e19ff2ca83a6230f03a789b38906f9fbdc968016f1c21075e14a7','fd988dec516d8424846eac7d917572bac87acbe8');
INSERT INTO "files" VALUES('fd988dec516d8424846eac7d917572bac87acbe8','graft.json','83b0db58356d041821860fd90db0a71dc1f5c75d114e695681cc473cc520f177','fd988dec516d8424846eac7d917572bac87acbe8');
CREATE TABLE labels (
            label TEXT NOT NULL, repo_id INTEGER NOT NULL REFERENCES repos(id) ON DELETE CASCADE,
            PRIMARY KEY (label, repo_id)) WITHOUT ROWID;
INSERT INTO "labels" VALUES('base_model:adapter:golden/small',1);
INSERT INTO "labels" VALUES('base_model:golden/small',1);
INSERT INTO "labels" VALUES('license:apache-2.0',1);
INSERT INTO "labels" VALUES('lora',1);
INSERT INTO "labels" VALUES('peft',1);
INSERT INTO "labels" VALUES('task:topics',1);
INSERT INTO "labels" VALUES('base_model:adapter:golden/small',2);
INSERT INTO "labels" VALUES('base_model:golden/small',2);
INSERT INTO "labels" VALUES('license:apache-2.0',2);
INSERT INTO "labels" VALUES('lora',2);
INSERT INTO "labels" VALUES('peft',2);
INSERT INTO "labels" VALUES('task:topics',2);
INSERT INTO "labels" VALUES('base_model:adapter:golden/small',4);
INSERT INTO "labels" VALUES('base_model:golden/small',4);
INSERT INTO "labels" VALUES('license:apache-2.0',4);
INSERT INTO "labels" VALUES('lora',4);
INSERT INTO "labels" VALUES('peft',4);
INSERT INTO "labels" VALUES('task:topics',4);
CREATE TABLE listing (
            repo_id INTEGER PRIMARY KEY REFERENCES repos(id) ON DELETE CASCADE, revision_id TEXT NOT NULL, digest TEXT,
            private INTEGER NOT NULL, namespace TEXT NOT NULL COLLATE NOCASE, task TEXT NOT NULL, base TEXT NOT NULL,
            method TEXT NOT NULL, license TEXT NOT NULL, parameters INTEGER, bytes INTEGER NOT NULL, score REAL,
            downloads INTEGER NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL, name TEXT NOT NULL DEFAULT '');
INSERT INTO "listing" VALUES(1,'467fde424ca4e5f3b39a6f81000993ccd39d4452','b044a6df00647fefd8849cfbf2b16b83fa8de348f863361c4e7dc159a7e88d82',0,'ann','topics','golden/small','lora','apache-2.0',32,408,1.0,1,'2026-01-02T03:04:10.000000Z','2026-01-02T03:04:16.000000Z','topics');
INSERT INTO "listing" VALUES(2,'10c5846de4c63da28ce0d5e752fdaa3ee1492d2a','1176dc7c63f087f8ce2422d0b284c45a7a1a3eda3e893b084c1bdb7b6b908918',1,'bob','topics','golden/small','lora','apache-2.0',32,408,NULL,0,'2026-01-02T03:04:33.000000Z','2026-01-02T03:04:35.000000Z','local');
INSERT INTO "listing" VALUES(4,'fd988dec516d8424846eac7d917572bac87acbe8','652baf42e123433ccc5cee4c707b7eb6ffe9dcb168680a36a78374a68ec6dee1',0,'bob','topics','golden/small','lora','apache-2.0',32,408,NULL,0,'2026-01-02T03:04:45.000000Z','2026-01-02T03:04:47.000000Z','new-name');
CREATE TABLE members (
            namespace TEXT NOT NULL COLLATE NOCASE, user_id INTEGER NOT NULL REFERENCES users(id),
            PRIMARY KEY (namespace, user_id)) WITHOUT ROWID;
CREATE TABLE ref_moves (
            id INTEGER PRIMARY KEY, repo_id INTEGER NOT NULL REFERENCES repos(id), kind TEXT NOT NULL, name TEXT NOT NULL,
            old TEXT, new TEXT, who TEXT NOT NULL, why TEXT NOT NULL, at TEXT NOT NULL);
INSERT INTO "ref_moves" VALUES(1,1,'branch','main',NULL,'94e38abe8a7effdb9c3d828672543d57a107a45d','ann','First','2026-01-02T03:04:13.000000Z');
INSERT INTO "ref_moves" VALUES(2,1,'tag','v1',NULL,'94e38abe8a7effdb9c3d828672543d57a107a45d','ann','published with this tag','2026-01-02T03:04:15.000000Z');
INSERT INTO "ref_moves" VALUES(3,1,'branch','main','94e38abe8a7effdb9c3d828672543d57a107a45d','467fde424ca4e5f3b39a6f81000993ccd39d4452','bob','Publish 2','2026-01-02T03:04:18.000000Z');
INSERT INTO "ref_moves" VALUES(4,1,'branch','try',NULL,'94e38abe8a7effdb9c3d828672543d57a107a45d','bob','branch at v1','2026-01-02T03:04:20.000000Z');
INSERT INTO "ref_moves" VALUES(5,1,'branch','try','94e38abe8a7effdb9c3d828672543d57a107a45d','05dbe34cbea1e51aae6c99f7c3715f41a170d902','bob','A card','2026-01-02T03:04:23.000000Z');
INSERT INTO "ref_moves" VALUES(6,1,'alias','production',NULL,'94e38abe8a7effdb9c3d828672543d57a107a45d','ann','safe','2026-01-02T03:04:25.000000Z');
INSERT INTO "ref_moves" VALUES(7,1,'alias','production','94e38abe8a7effdb9c3d828672543d57a107a45d','467fde424ca4e5f3b39a6f81000993ccd39d4452','ann','better','2026-01-02T03:04:27.000000Z');
INSERT INTO "ref_moves" VALUES(8,1,'alias','production','467fde424ca4e5f3b39a6f81000993ccd39d4452','05dbe34cbea1e51aae6c99f7c3715f41a170d902','ann','newest','2026-01-02T03:04:29.000000Z');
INSERT INTO "ref_moves" VALUES(9,1,'alias','production','05dbe34cbea1e51aae6c99f7c3715f41a170d902','467fde424ca4e5f3b39a6f81000993ccd39d4452','ann','rollback','2026-01-02T03:04:31.000000Z');
INSERT INTO "ref_moves" VALUES(10,2,'branch','main',NULL,'10c5846de4c63da28ce0d5e752fdaa3ee1492d2a','bob','Publish local','2026-01-02T03:04:36.000000Z');
INSERT INTO "ref_moves" VALUES(11,3,'branch','main',NULL,'f3aa3e39be294185b8aecc231c3df418a711ed17','bob','Publish 4','2026-01-02T03:04:41.000000Z');
INSERT INTO "ref_moves" VALUES(12,4,'branch','main',NULL,'fd988dec516d8424846eac7d917572bac87acbe8','bob','Publish 5','2026-01-02T03:04:48.000000Z');
CREATE TABLE refs (
            repo_id INTEGER NOT NULL REFERENCES repos(id), kind TEXT NOT NULL CHECK (kind IN ('branch','tag','alias')),
            name TEXT NOT NULL, revision_id TEXT REFERENCES revisions(id), PRIMARY KEY (repo_id, kind, name)) WITHOUT ROWID;
INSERT INTO "refs" VALUES(1,'branch','try','05dbe34cbea1e51aae6c99f7c3715f41a170d902');
INSERT INTO "refs" VALUES(2,'branch','main','10c5846de4c63da28ce0d5e752fdaa3ee1492d2a');
INSERT INTO "refs" VALUES(1,'alias','production','467fde424ca4e5f3b39a6f81000993ccd39d4452');
INSERT INTO "refs" VALUES(1,'branch','main','467fde424ca4e5f3b39a6f81000993ccd39d4452');
INSERT INTO "refs" VALUES(1,'tag','v1','94e38abe8a7effdb9c3d828672543d57a107a45d');
INSERT INTO "refs" VALUES(4,'branch','main','fd988dec516d8424846eac7d917572bac87acbe8');
CREATE TABLE repos (
            id INTEGER PRIMARY KEY, namespace TEXT NOT NULL COLLATE NOCASE, name TEXT NOT NULL COLLATE NOCASE,
            private INTEGER NOT NULL DEFAULT 0, disabled TEXT, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
            deleted_at TEXT, moved_to INTEGER REFERENCES repos(id), downloads INTEGER NOT NULL DEFAULT 0,
            UNIQUE (namespace, name));
INSERT INTO "repos" VALUES(1,'ann','topics',0,NULL,'2026-01-02T03:04:10.000000Z','2026-01-02T03:04:22.000000Z',NULL,NULL,1);
INSERT INTO "repos" VALUES(2,'bob','local',1,NULL,'2026-01-02T03:04:33.000000Z','2026-01-02T03:04:35.000000Z',NULL,NULL,0);
INSERT INTO "repos" VALUES(3,'bob','gone',0,NULL,'2026-01-02T03:04:38.000000Z','2026-01-02T03:04:40.000000Z','2026-01-02T03:04:43.000000Z',NULL,0);
INSERT INTO "repos" VALUES(4,'bob','new-name',0,NULL,'2026-01-02T03:04:45.000000Z','2026-01-02T03:04:47.000000Z',NULL,NULL,0);
INSERT INTO "repos" VALUES(5,'bob','old-name',0,NULL,'2026-01-02T03:04:50.000000Z','2026-01-02T03:04:50.000000Z','2026-01-02T03:04:52.000000Z',4,0);
CREATE TABLE revisions (
            id TEXT PRIMARY KEY, repo_id INTEGER NOT NULL REFERENCES repos(id), parent TEXT,
            author TEXT NOT NULL, title TEXT NOT NULL, message TEXT NOT NULL, created_at TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "revisions" VALUES('05dbe34cbea1e51aae6c99f7c3715f41a170d902',1,'94e38abe8a7effdb9c3d828672543d57a107a45d','bob','A card','','2026-01-02T03:04:22.000000Z');
INSERT INTO "revisions" VALUES('10c5846de4c63da28ce0d5e752fdaa3ee1492d2a',2,NULL,'bob','Publish local','','2026-01-02T03:04:35.000000Z');
INSERT INTO "revisions" VALUES('467fde424ca4e5f3b39a6f81000993ccd39d4452',1,'94e38abe8a7effdb9c3d828672543d57a107a45d','bob','Publish 2','','2026-01-02T03:04:16.000000Z');
INSERT INTO "revisions" VALUES('94e38abe8a7effdb9c3d828672543d57a107a45d',1,NULL,'ann','First','Try.','2026-01-02T03:04:12.000000Z');
INSERT INTO "revisions" VALUES('f3aa3e39be294185b8aecc231c3df418a711ed17',3,NULL,'bob','Publish 4','','2026-01-02T03:04:40.000000Z');
INSERT INTO "revisions" VALUES('fd988dec516d8424846eac7d917572bac87acbe8',4,NULL,'bob','Publish 5','','2026-01-02T03:04:47.000000Z');
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE tasks (
            slug TEXT PRIMARY KEY, metric TEXT NOT NULL, description TEXT NOT NULL,
            data_hash TEXT NOT NULL REFERENCES blobs(sha256), examples INTEGER NOT NULL,
            created_at TEXT NOT NULL, updated_at TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "tasks" VALUES('topics','accuracy','Sport or money','458997f00d6278f69a9425a24275655a0db7dac8c4e1ae2894f0d15b9d44e2a6',3,'2026-01-02T03:04:08.000000Z','2026-01-02T03:04:08.000000Z');
CREATE TABLE tokens (
            id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users(id),
            name TEXT NOT NULL, hash TEXT NOT NULL UNIQUE, scope TEXT NOT NULL CHECK (scope IN ('read','write','admin')),
            created_at TEXT NOT NULL, revoked_at TEXT);
CREATE TABLE uploads (
            sha256 TEXT NOT NULL, who TEXT NOT NULL COLLATE NOCASE, created_at TEXT NOT NULL,
            PRIMARY KEY (sha256, who)) WITHOUT ROWID;
CREATE TABLE users (
            id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE, created_at TEXT NOT NULL);
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE INDEX audit_subject ON audit(subject, id);
CREATE INDEX bases_id ON bases(id);
CREATE INDEX revisions_repo ON revisions(repo_id, created_at);
CREATE INDEX files_sha256 ON files(sha256);
CREATE INDEX refs_revision ON refs(revision_id);
CREATE INDEX ref_moves_ref ON ref_moves(repo_id, kind, name, id);
CREATE INDEX artifacts_digest ON artifacts(digest);
CREATE INDEX listing_facets ON listing(private, task, base, method, license);
CREATE INDEX listing_updated ON listing(updated_at);
CREATE INDEX listing_created ON listing(created_at);
CREATE INDEX listing_downloads ON listing(downloads);
CREATE INDEX listing_score ON listing(score);
CREATE INDEX listing_task ON listing(task, base);
CREATE INDEX labels_repo ON labels(repo_id);
CREATE INDEX evaluations_repo ON evaluations(repo_id, id);
CREATE INDEX evaluations_task ON evaluations(task, data_hash, base_fingerprint);
CREATE INDEX evaluations_digest ON evaluations(digest, task, data_hash);
CREATE INDEX listing_name ON listing(namespace, name);

CREATE VIRTUAL TABLE texts USING fts5(name, labels, card, tokenize='porter unicode61');
INSERT INTO texts (rowid, name, labels, card) VALUES (1, 'ann/topics', 'lora task:topics base_model:golden/small base_model:adapter:golden/small peft license:apache-2.0', '# Topics 2

Tells sport from money.
');
INSERT INTO texts (rowid, name, labels, card) VALUES (2, 'bob/local', 'lora task:topics base_model:golden/small base_model:adapter:golden/small peft license:apache-2.0', '# Topics 3

Tells sport from money.
');
INSERT INTO texts (rowid, name, labels, card) VALUES (4, 'bob/new-name', 'lora task:topics base_model:golden/small base_model:adapter:golden/small peft license:apache-2.0', '# Topics 5

Tells sport from money.
');
COMMIT;
