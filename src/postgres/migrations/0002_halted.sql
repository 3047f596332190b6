-- Why nobody may take the role before an operator has decided; null: anybody may.
ALTER TABLE writer ADD COLUMN halted text;
